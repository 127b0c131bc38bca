"""Chunks of 8 actions per second with `sleep=True`, beside all objects awake, without cameras: one task of each kind of scene.

The physics: of 51 degrees of freedom of a libero_object scene, with some 30 contacts, nine are the robot's. Most other objects
lie on the floor all the time.
"""

from typing import Any

import numpy as np
import pytest
from pairing import Side, compare

from vla_envs.libero.env import LiberoEnv

NUM_ENVS, CHUNK_SIZE, NUM_CHUNKS, ROUNDS = 8, 8, 6, 7


@pytest.mark.parametrize(
    ("suite", "task_id"), [("libero_object", 6), ("libero_spatial", 0), ("libero_goal", 3), ("libero_10", 0)]
)
def test_sleep_against_all_objects_awake(benchmark: Any, suite: str, task_id: int) -> None:
    actions = np.random.default_rng(0).uniform(-1, 1, (NUM_CHUNKS, NUM_ENVS, CHUNK_SIZE, 7))
    envs = [
        LiberoEnv(NUM_ENVS, suite=suite, task_id=task_id, detail="fast", cameras=(), chunk_size=CHUNK_SIZE, sleep=sleep)
        for sleep in (True, False)
    ]

    def side(env: LiberoEnv) -> Side:
        def play() -> int:
            for chunk in actions:
                env.step(chunk)
            return NUM_CHUNKS * NUM_ENVS

        return Side(prepare=lambda: env.reset(options={"init_state_id": np.arange(NUM_ENVS)}), work=play)

    sleeping, awake = map(side, envs)
    rates = compare(
        benchmark, f"sleep, {suite} {task_id}", "chunks/s", ours=sleeping, stock=awake, rounds=ROUNDS, baseline="awake"
    )
    for env in envs:
        env.close()
    assert rates.ratio >= 1.5
