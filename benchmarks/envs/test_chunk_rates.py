"""Chunks of 8 actions per second, beside stock LIBERO, which draws two cameras after every action.

The physics: a chunk costs 8 x 25 substeps and one picture; in stock LIBERO 16 pictures. In software a picture costs as much as
10 (simplified) to 50 (full detail) control steps, so that what is drawn decides.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
from pairing import compare
from stock import CHUNK_SIZE, IMAGE_SIZE, NUM_STOCK_ENVS, SUITE, TASK_ID, play_stock_chunk

from vla_envs.libero.env import LiberoEnv

NUM_ENVS = 8
ROUNDS = 5


@contextmanager
def libero_env(num_envs: int, **options: Any) -> Iterator[LiberoEnv]:
    """The task that stock LIBERO plays, reset; its episodes do not end by time."""
    env = LiberoEnv(num_envs, suite=SUITE, task_ids=[TASK_ID], image_size=IMAGE_SIZE, max_episode_steps=10**6, **options)
    env.reset(seed=0)
    yield env
    env.close()


@pytest.mark.parametrize(("detail", "at_least"), [("full", 10.0), ("fast", 30.0)])
def test_one_picture_per_chunk_against_two_cameras_at_every_step(
    benchmark: Any, stock_envs: Any, detail: str, at_least: float
) -> None:
    rng = np.random.default_rng(0)
    with libero_env(NUM_ENVS, chunk_size=CHUNK_SIZE, detail=detail) as env:

        def play_here() -> int:
            for _ in range(4):
                env.step(rng.uniform(-1, 1, env.action_space.shape))
            return 4 * NUM_ENVS

        claim = f"one camera per chunk, {detail} detail"
        stock = lambda: play_stock_chunk(stock_envs, rng)  # noqa: E731
        rates = compare(benchmark, claim, "chunks/s", ours=play_here, stock=stock, rounds=ROUNDS)
    assert rates.ratio >= at_least


def test_the_same_work_exactly(benchmark: Any, stock_envs: Any) -> None:
    """Two cameras after every control step at full detail, in as many envs."""
    rng = np.random.default_rng(0)
    with libero_env(NUM_STOCK_ENVS, cameras=("agentview", "wrist")) as env:

        def play_here() -> int:
            for _ in range(CHUNK_SIZE):
                env.step(rng.uniform(-1, 1, env.action_space.shape))
            return NUM_STOCK_ENVS

        stock = lambda: play_stock_chunk(stock_envs, rng)  # noqa: E731
        rates = compare(
            benchmark, "two cameras at every step, full detail", "chunks/s", ours=play_here, stock=stock, rounds=ROUNDS
        )
    assert rates.ratio >= 1.0


def test_physics_alone(benchmark: Any, stock_envs_without_cameras: Any) -> None:
    """Control steps without any picture on either side."""
    rng = np.random.default_rng(0)
    with libero_env(NUM_ENVS, chunk_size=CHUNK_SIZE, cameras=()) as env:

        def play_here() -> int:
            for _ in range(10):
                env.step(rng.uniform(-1, 1, env.action_space.shape))
            return 10 * NUM_ENVS * CHUNK_SIZE

        def play_stock() -> int:
            return sum(CHUNK_SIZE * play_stock_chunk(stock_envs_without_cameras, rng) for _ in range(5))

        rates = compare(benchmark, "physics alone", "control steps/s", ours=play_here, stock=play_stock, rounds=ROUNDS)
    assert rates.ratio >= 5.0
    assert rates.ours >= 1000.0
