"""What the pipeline itself costs per chunk: envs and a policy that take no time at all.

One chunk is one decision of one slot: gathering its image, drawing its sampling numbers, batching, commands, recording. Images
are copied twice on the way into a trajectory, which is most of it at 256 x 256.
"""

import itertools
import os
import time
from typing import Any

import pytest
from synthetic import ACTION_DIM, CHUNK_SIZE, SleepingPolicy, make_spec, sleeping_config

from vla_train.config import RolloutConfig
from vla_train.pipeline.rollout import Rollout
from vla_train.pipeline.sampling_numbers import sampling_numbers
from vla_train.pipeline.timeline import Timeline
from vla_train.pipeline.workers import make_workers

SCALE = float(os.environ.get("PIPELINE_BENCH_SCALE", "1"))
GROUP_SIZE = 8


@pytest.mark.parametrize("worker", ["thread", "process"])
@pytest.mark.parametrize("image_size", [16, 256])
def test_overhead_per_chunk(worker: str, image_size: int) -> None:
    config = sleeping_config(num_groups=2, envs_per_group=32, worker=worker, image_size=image_size, shortest=20, longest=40)
    workers = make_workers(config, chunk_size=CHUNK_SIZE, seed=0)
    settings = RolloutConfig(groups_per_iteration=int(16 * SCALE), group_size=GROUP_SIZE)
    rollout = Rollout(settings, policy=SleepingPolicy(row_s=0.0), workers=workers, timeline=Timeline(), seed=0)
    prompts = (
        tuple(make_spec(group * GROUP_SIZE + sample, group_id=group) for sample in range(GROUP_SIZE))
        for group in itertools.count()
    )
    try:
        rollout.collect(prompts, lambda group: True)
        stats = rollout.collect(prompts, lambda group: True).stats
    finally:
        rollout.close()
    overhead_us = 1e6 * stats.duration_s / stats.decisions
    print(f"\n{worker}, {image_size} x {image_size} pixels: {overhead_us:.0f} us per chunk")
    if image_size == 16:
        assert overhead_us < 100


def test_cost_of_sampling_numbers_and_spans(benchmark: Any) -> None:
    spec = make_spec(3)
    benchmark(sampling_numbers, 0, spec, 5, CHUNK_SIZE * ACTION_DIM)
    timeline = Timeline()
    start = time.perf_counter()
    for index in range(100_000):
        timeline.add("env 0", "simulate", index, index + 1)
    print(f"\na span: {1e6 * (time.perf_counter() - start) / 100_000:.2f} us")
    if benchmark.stats is not None:
        assert benchmark.stats.stats.median < 30e-6
