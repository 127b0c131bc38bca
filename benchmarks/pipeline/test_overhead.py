"""What the pipeline itself costs per chunk, beside a plain serial loop: envs and a policy that take no time at all.

One chunk is one decision of one slot: gathering its image, drawing its sampling numbers, batching, commands, recording. Images
are copied twice on the way into a trajectory, which is most of it at 256 x 256 (200 kB each, into memory never used before).
The serial loop draws no sampling numbers per slot, and records nothing.
"""

import time
import timeit

import numpy as np
import pytest
from loops import PipelinedLoop, play_serially, started_workers
from synthetic import ACTION_DIM, CHUNK_SIZE, SleepingPolicy, make_spec, sleeping_config

from vla_train.pipeline.sampling_numbers import sampling_numbers
from vla_train.pipeline.timeline import Timeline


@pytest.mark.parametrize("worker", ["thread", "process"])
@pytest.mark.parametrize("image_size", [16, 256])
def test_overhead_per_chunk(worker: str, image_size: int) -> None:
    config = sleeping_config(num_workers=2, envs_per_worker=32, worker=worker, image_size=image_size, shortest=20, longest=40)
    with started_workers(config, chunk_size=CHUNK_SIZE) as workers:
        serial = play_serially(workers, SleepingPolicy(row_s=0.0), make_spec, seconds=2.0)
        pipelined = PipelinedLoop(workers, SleepingPolicy(row_s=0.0), make_spec).play(seconds=2.0)
    ratio = serial.decisions_per_s / pipelined.decisions_per_s
    print(
        f"\n{worker}, {image_size} x {image_size} pixels: {1e6 / pipelined.decisions_per_s:.0f} us per chunk, "
        f"serial loop {1e6 / serial.decisions_per_s:.0f} us: {ratio:.1f} x"
    )
    if image_size == 16:
        assert ratio <= 15.0


def test_sampling_numbers_cost_about_what_a_seeded_generator_of_numpys_does() -> None:
    spec, num_tokens = make_spec(3, 0, 0), CHUNK_SIZE * ACTION_DIM
    ours = min(timeit.repeat(lambda: sampling_numbers(0, spec, 5, num_tokens), number=1000, repeat=7)) / 1000
    numpys = min(timeit.repeat(lambda: np.random.default_rng(5).random(num_tokens, np.float32), number=1000, repeat=7)) / 1000
    print(f"\nsampling numbers: {1e6 * ours:.1f} us, a new generator of NumPy's {1e6 * numpys:.1f} us: {ours / numpys:.1f} x")
    assert ours / numpys <= 3.0


def test_cost_of_spans() -> None:
    """Printed only."""
    timeline = Timeline()
    start = time.perf_counter()
    for index in range(100_000):
        timeline.add("env 0", "simulate", index, index + 1)
    print(f"\na span: {1e6 * (time.perf_counter() - start) / 100_000:.2f} us")
