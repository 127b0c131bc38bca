"""1,000 slots over 8 process workers: memory stays flat, however long it runs (PIPELINE_BENCH_MINUTES, default a third)."""

import itertools
import os
import time

import psutil
from synthetic import CHUNK_SIZE, SleepingPolicy, make_spec, sleeping_config

from vla_train.config import RolloutConfig
from vla_train.pipeline.rollout import Rollout
from vla_train.pipeline.timeline import Timeline
from vla_train.pipeline.workers import make_workers

MINUTES = float(os.environ.get("PIPELINE_BENCH_MINUTES", "0.33"))
GROUP_SIZE = 8


def resident_mb() -> float:
    """Memory of this process and its children; shared pages count once per process."""
    process = psutil.Process()
    return sum(each.memory_info().rss for each in [process, *process.children(recursive=True)]) / 1e6


def test_a_thousand_slots_over_eight_processes_keep_memory_flat() -> None:
    config = sleeping_config(
        num_groups=8, envs_per_group=125, worker="process", step_s=0.05, sigma=0.3, shortest=5, longest=25, image_size=64
    )
    workers = make_workers(config, chunk_size=CHUNK_SIZE, seed=0)
    settings = RolloutConfig(groups_per_iteration=16, group_size=GROUP_SIZE)
    timeline = Timeline(max_spans=10_000)
    rollout = Rollout(settings, policy=SleepingPolicy(row_s=0.0), workers=workers, timeline=timeline, seed=0)
    prompts = (
        tuple(make_spec(group * GROUP_SIZE + sample, group, sample) for sample in range(GROUP_SIZE))
        for group in itertools.count()
    )
    samples: list[float] = []
    episodes = 0
    start = time.perf_counter()
    try:
        while time.perf_counter() - start < 60 * MINUTES:
            episodes += rollout.collect(prompts, lambda group: True).stats.episodes
            samples.append(resident_mb())
    finally:
        rollout.close()
    # An iteration's trajectories come and go: compare the peaks of the two halves after a warm-up.
    warm = samples[len(samples) // 5 :]
    first, second = max(warm[: len(warm) // 2]), max(warm[len(warm) // 2 :])
    print(
        f"\n1,000 slots, 8 processes, {MINUTES:g} min, {episodes} episodes: peak {first:.0f} MB in the first half, "
        f"{second:.0f} MB in the second ({second / first - 1:+.1%})"
    )
    assert second < 1.03 * first
