"""`dying_env:Dying-v0`: the env of `reach_env`, whose process dies at the first step."""

import os
import signal
from typing import Any

import gymnasium as gym
import numpy as np
from reach_env import STEPS, ReachEnv


class DyingEnv(ReachEnv):
    """See the module's docstring."""

    def step(self, action: np.ndarray) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        os.kill(os.getpid(), signal.SIGKILL)
        return super().step(action)


gym.register("Dying-v0", entry_point=DyingEnv, max_episode_steps=STEPS, disable_env_checker=True)
