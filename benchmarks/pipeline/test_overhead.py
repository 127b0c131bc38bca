"""What the pipeline itself costs per chunk: envs and a policy that take no time at all.

One chunk is one decision of one slot: gathering its image, drawing its sampling numbers, batching, commands, recording. Images
are copied twice on the way into a trajectory, which is most of it at 256 x 256 (200 kB each, into memory never used before).
"""

import time
from typing import Any

import pytest
from loops import PipelinedLoop, started_workers
from synthetic import ACTION_DIM, CHUNK_SIZE, SleepingPolicy, make_spec, sleeping_config

from vla_train.pipeline.sampling_numbers import sampling_numbers
from vla_train.pipeline.timeline import Timeline


@pytest.mark.parametrize("worker", ["thread", "process"])
@pytest.mark.parametrize("image_size", [16, 256])
def test_overhead_per_chunk(worker: str, image_size: int) -> None:
    config = sleeping_config(num_workers=2, envs_per_worker=32, worker=worker, image_size=image_size, shortest=20, longest=40)
    with started_workers(config, chunk_size=CHUNK_SIZE) as workers:
        played = PipelinedLoop(workers, SleepingPolicy(row_s=0.0), make_spec).play(seconds=2.0)
    overhead_us = 1e6 / played.decisions_per_s
    print(f"\n{worker}, {image_size} x {image_size} pixels: {overhead_us:.0f} us per chunk")
    if image_size == 16:
        assert overhead_us < 100


def test_cost_of_sampling_numbers_and_spans(benchmark: Any) -> None:
    benchmark(sampling_numbers, 0, make_spec(3, 0, 0), 5, CHUNK_SIZE * ACTION_DIM)
    timeline = Timeline()
    start = time.perf_counter()
    for index in range(100_000):
        timeline.add("env 0", "simulate", index, index + 1)
    print(f"\na span: {1e6 * (time.perf_counter() - start) / 100_000:.2f} us")
    if benchmark.stats is not None:
        assert benchmark.stats.stats.median < 30e-6
