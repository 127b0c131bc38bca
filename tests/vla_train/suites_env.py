"""`ReachSuites-v0`: the env of `reach_env` as several suites, some of which cannot be played."""

from functools import partial
from typing import Any

import gymnasium as gym
from gymnasium.vector import AutoresetMode
from reach_env import STEPS, ReachEnv

SUITES = ("libero_goal", "libero_goal_object", "libero_goal_swap", "libero_goal_lan", "libero_goal_task", "libero_10")
INCOMPLETE = "libero_goal_temp"
"""Says that a file is missing when it is reset."""


class ReachSuitesEnv(gym.vector.SyncVectorEnv):
    """See the module's docstring.

    Args:
        suite: One of `SUITES`, or `INCOMPLETE`.
        fault_suite: Where the fault happens.
        fault: As for `ReachEnv`.
    """

    def __init__(self, num_envs: int, *, suite: str, fault_suite: str = "", **fault: Any) -> None:
        if suite not in (*SUITES, INCOMPLETE):
            raise ValueError(f"unknown suite {suite!r}")
        self.suite, self.max_episode_steps = suite, STEPS
        make = partial(ReachEnv, **(fault if suite == fault_suite else {}))
        super().__init__([lambda: gym.wrappers.TimeLimit(make(), STEPS)] * num_envs, autoreset_mode=AutoresetMode.DISABLED)

    def reset(self, **kwargs: Any) -> Any:
        if self.suite == INCOMPLETE:
            raise ImportError(f"suite {self.suite!r} lacks a file")
        return super().reset(**kwargs)


gym.register("ReachSuites-v0", vector_entry_point=ReachSuitesEnv)
