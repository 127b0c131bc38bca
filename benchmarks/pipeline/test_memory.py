"""1,000 slots over 8 process workers: memory stays flat, however long it runs.

    PIPELINE_BENCH_MINUTES=10 python -m pytest -s benchmarks/pipeline/test_memory.py      # default: a third of a minute

Trajectories come and go within an iteration, so what is compared is the highest level of each tenth of the run.
"""

import itertools
import os
import time

import psutil
import pytest
from synthetic import CHUNK_SIZE, SleepingPolicy, make_spec, sleeping_config

from vla_train.config import RolloutConfig
from vla_train.envs.workers import make_workers
from vla_train.pipeline.rollout import Rollout
from vla_train.pipeline.timeline import Timeline

MINUTES = float(os.environ.get("PIPELINE_BENCH_MINUTES", "0.33"))
GROUP_SIZE = 8
PERIODS = 10


def memory_mb() -> float:
    """Memory of this process and its children: their own pages, and their part of shared ones."""
    process = psutil.Process()
    return sum(each.memory_full_info().pss for each in [process, *process.children(recursive=True)]) / 1e6


@pytest.mark.timeout(60 * MINUTES + 300)
def test_a_thousand_slots_over_eight_processes_keep_memory_flat() -> None:
    config = sleeping_config(
        num_workers=8, envs_per_worker=125, worker="process", step_s=0.05, sigma=0.3, shortest=5, longest=25, image_size=64
    )
    workers = make_workers(config, chunk_size=CHUNK_SIZE)
    settings = RolloutConfig(groups_per_iteration=16, group_size=GROUP_SIZE)
    timeline = Timeline(max_spans=10_000)
    rollout = Rollout(settings, policy=SleepingPolicy(row_s=0.0), workers=workers, timeline=timeline, seed=0)
    prompts = (
        tuple(make_spec(group * GROUP_SIZE + sample, group, sample) for sample in range(GROUP_SIZE))
        for group in itertools.count()
    )
    peaks = [0.0] * PERIODS
    episodes = chunks = 0
    start = time.perf_counter()
    try:
        while (elapsed := time.perf_counter() - start) < 60 * MINUTES:
            stats = rollout.collect(prompts, lambda group: True).stats
            episodes, chunks = episodes + stats.episodes, chunks + stats.decisions
            period = int(PERIODS * elapsed / (60 * MINUTES))
            peaks[period] = max(peaks[period], memory_mb())
    finally:
        rollout.close()
    seen = [peak for peak in peaks if peak]
    print(f"\n1,000 slots, 8 processes, {MINUTES:g} min, {episodes} episodes, {chunks} chunks; MB by tenths of the time:")
    print("  ".join(f"{peak:.0f}" for peak in seen))
    warm = seen[len(seen) // 5 :]
    first, second = max(warm[: len(warm) // 2]), max(warm[len(warm) // 2 :])
    print(f"second half / first half after a warm-up: {second / first:.3f}")
    assert second < 1.03 * first
