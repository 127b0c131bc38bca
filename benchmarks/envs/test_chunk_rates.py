"""Chunks of 8 actions per second, beside stock LIBERO, which draws two cameras after every action.

The physics: a chunk costs 8 x 25 substeps and one picture; in stock LIBERO 16 pictures. In software a picture costs as much as
10 (simplified) to 50 (full detail) control steps, so that what is drawn decides. Both sides play the beginning of episodes.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
from pairing import Rates, Side, compare
from stock import CHUNK_SIZE, IMAGE_SIZE, NUM_STOCK_ENVS, SUITE, TASK_ID, play_stock, reset_stock

from vla_envs.libero.env import LiberoEnv

NUM_ENVS = 8
ROUNDS = 5


@contextmanager
def libero_env(num_envs: int, **options: Any) -> Iterator[LiberoEnv]:
    """The task that stock LIBERO plays."""
    env = LiberoEnv(num_envs, suite=SUITE, task_ids=[TASK_ID], image_size=IMAGE_SIZE, settle_steps=0, **options)
    yield env
    env.close()


def compare_playing(benchmark: Any, claim: str, env: LiberoEnv, stock_envs: Any, *, num_chunks: int) -> Rates:
    """Chunks per second, each side playing `num_chunks` in each of its envs from the benchmark's initial states on."""
    rng = np.random.default_rng(0)

    def play_here() -> int:
        for _ in range(num_chunks * CHUNK_SIZE // (env.chunk_size or 1)):
            env.step(rng.uniform(-1, 1, env.action_space.shape))
        return num_chunks * env.num_envs

    ours = Side(prepare=lambda: env.reset(options={"init_state_id": np.arange(env.num_envs)}), work=play_here)
    stock = Side(prepare=lambda: reset_stock(stock_envs, 0), work=lambda: play_stock(stock_envs, rng, num_chunks))
    return compare(benchmark, claim, "chunks/s", ours=ours, stock=stock, rounds=ROUNDS)


@pytest.mark.parametrize(("detail", "at_least"), [("full", 10.0), ("fast", 30.0)])
def test_one_picture_per_chunk_against_two_cameras_at_every_step(
    benchmark: Any, stock_envs: Any, detail: str, at_least: float
) -> None:
    with libero_env(NUM_ENVS, chunk_size=CHUNK_SIZE, detail=detail) as env:
        rates = compare_playing(benchmark, f"one camera per chunk, {detail} detail", env, stock_envs, num_chunks=3)
    assert rates.ratio >= at_least


def test_the_same_work_exactly(benchmark: Any, stock_envs: Any) -> None:
    """Two cameras after every control step at full detail, in as many envs."""
    with libero_env(NUM_STOCK_ENVS, cameras=("agentview", "wrist")) as env:
        rates = compare_playing(benchmark, "two cameras at every step, full detail", env, stock_envs, num_chunks=2)
    assert rates.ratio >= 1.0


def test_physics_alone(benchmark: Any, stock_envs_without_cameras: Any) -> None:
    """No picture on either side."""
    with libero_env(NUM_ENVS, chunk_size=CHUNK_SIZE, cameras=()) as env:
        rates = compare_playing(benchmark, "physics alone", env, stock_envs_without_cameras, num_chunks=10)
    print(f"that is {CHUNK_SIZE * rates.ours:.0f} control steps/s")
    assert rates.ratio >= 5.0
