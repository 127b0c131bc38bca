"""Control steps per second with every key of the robot's state observed, beside none, without cameras: the worst case.

The physics: a control step is 25 substeps, more than a millisecond of one core. The readings are 48 numbers, copied with the
rest of what is seen in native code whether they are asked for or not. What asking costs is one array of all slots and a few
slices of it.
"""

from typing import Any

import numpy as np
from pairing import Side, compare
from stock import SUITE, TASK_ID

from vla_envs.libero.env import LiberoEnv
from vla_envs.vector.robot_state import ROBOT_STATE

NUM_ENVS, NUM_STEPS, ROUNDS = 8, 60, 11


def test_all_keys_of_the_robots_state_against_none(benchmark: Any) -> None:
    actions = np.random.default_rng(0).uniform(-1, 1, (NUM_STEPS, NUM_ENVS, 7))
    envs = [
        LiberoEnv(NUM_ENVS, suite=SUITE, task_id=TASK_ID, detail="fast", cameras=(), settle_steps=0, state_keys=keys)
        for keys in (tuple(ROBOT_STATE), ())
    ]

    def side(env: LiberoEnv) -> Side:
        def play() -> int:
            for action in actions:
                env.step(action)
            return NUM_STEPS * NUM_ENVS

        return Side(prepare=lambda: env.reset(options={"init_state_id": np.arange(NUM_ENVS)}), work=play)

    every, none = map(side, envs)
    rates = compare(benchmark, "all keys", "control steps/s", ours=every, stock=none, rounds=ROUNDS, baseline="no keys")
    for env in envs:
        env.close()
    assert rates.ratio >= 0.9
