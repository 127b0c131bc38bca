"""`buggy_env:Buggy-v0`: the point of `pipeline_envs`, whose author made a mistake in one of its methods."""

from typing import Any

import gymnasium as gym
import numpy as np
from pipeline_envs import DriftEnv


class BuggyEnv(DriftEnv):
    """Fails in `method`: "make", "first reset" (while the worker starts), "reset" or "step"."""

    def __init__(self, *, method: str, bug: str) -> None:
        super().__init__()
        self._method, self._bug, self._resets = method, bug, 0
        self._visit("make")

    def reset(self, **options: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        self._resets += 1
        self._visit("reset" if self._resets > 1 else "first reset")
        return super().reset(**options)

    def step(self, action: np.ndarray) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        self._visit("step")
        return super().step(action)

    def _visit(self, method: str) -> None:
        if method == self._method:
            match self._bug:
                case "shapes":
                    np.zeros(3) + np.zeros(4)
                case "value":
                    raise ValueError("three")
                case "import":
                    from numpy import no_such_name  # noqa: F401
                case "keyword":
                    int(colour=1)  # type: ignore[call-overload]


BUGS = {
    "shapes": "ValueError: operands could not be broadcast",
    "value": "ValueError: three",
    "import": "ImportError: cannot import name",
    "keyword": "TypeError: ",
}

gym.register("Buggy-v0", entry_point=BuggyEnv, max_episode_steps=20, disable_env_checker=True)
