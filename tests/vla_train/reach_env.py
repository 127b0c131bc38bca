"""A small env with an image and an instruction, for whole runs: about half of all random episodes succeed.

`reach_env:Reach-v0`: a point moves by the first number of each action; the episode ends after `STEPS` steps, and succeeds with
reward 1 if the point is then on the right side. The image shows the seed, the step and the position.
`reach_env:ReachPixels-v0` is the same with the image drawn by Gymnasium's own wrapper, and no instruction.
"""

import os
import signal
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np

STEPS = 6
SIZE = 28
INSTRUCTION = "go to the right"


class ReachEnv(gym.Env[dict[str, Any], np.ndarray]):
    """See the module's docstring.

    Args:
        fault: What happens in the middle of the episode with reset seed `fault_seed`: "kill", "stop", "terminate" or
            "interrupt" are signals to this process; "raise" is an error of the env. It happens once for each marker that is not
            there yet.
        fault_seed: Reset seed of that episode.
        marker: File that is made when it happens; while it is there, nothing happens.
    """

    metadata = {"render_modes": ["rgb_array"]}  # noqa: RUF012
    render_mode = "rgb_array"
    observation_space = gym.spaces.Dict(
        {
            "image": gym.spaces.Box(0, 255, (SIZE, SIZE, 3), np.uint8),
            "instruction": gym.spaces.Text(64, charset="".join(sorted(set(INSTRUCTION)))),
        }
    )
    action_space = gym.spaces.Box(-1.0, 1.0, (2,), np.float32)

    def __init__(
        self, *, fault: str = "", fault_seed: int = -1, marker: str | None = None, render_mode: str | None = None
    ) -> None:
        self._fault, self._fault_seed, self._marker = fault, fault_seed, marker

    def render(self) -> np.ndarray:
        image = np.zeros((SIZE, SIZE, 3), np.uint8)
        image[..., 0], image[..., 1] = self._seed % 256, 40 * self._steps
        column = int(np.clip((self._position + STEPS) / (2 * STEPS) * SIZE, 0, SIZE - 1))
        image[:, column, 2] = 255
        return image

    def _observe(self) -> dict[str, Any]:
        return {"image": self.render(), "instruction": INSTRUCTION}

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[dict[str, Any], dict[str, Any]]:
        super().reset(seed=seed)
        self._seed, self._steps = seed if seed is not None else 0, 0
        self._position = float(self.np_random.uniform(-0.3, 0.3))
        return self._observe(), {}

    def step(self, action: np.ndarray) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        self._steps += 1
        self._position += float(action[0])
        if self._steps == STEPS // 2 and self._seed == self._fault_seed and not (self._marker and Path(self._marker).exists()):
            self._fail()
        reached = self._steps >= STEPS and self._position > 0
        return self._observe(), float(reached), reached, False, {}

    def _fail(self) -> None:
        if self._marker:
            Path(self._marker).touch()
        match self._fault:
            case "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            case "stop":
                os.kill(os.getpid(), signal.SIGSTOP)
            case "terminate":
                os.kill(os.getpid(), signal.SIGTERM)
            case "interrupt":
                os.kill(os.getpid(), signal.SIGINT)
            case "raise":
                raise ZeroDivisionError("the simulator broke")


class ReachStates(gym.ObservationWrapper):  # type: ignore[type-arg]
    """Observes nothing but the position."""

    observation_space = gym.spaces.Box(-np.inf, np.inf, (1,), np.float32)

    def observation(self, observation: dict[str, Any]) -> np.ndarray:
        return np.array([self.unwrapped._position], np.float32)  # type: ignore[attr-defined]


def make_pixels(**kwargs: Any) -> gym.Env[Any, Any]:
    return gym.wrappers.AddRenderObservation(ReachStates(ReachEnv(**kwargs)), render_only=False, render_key="camera")


gym.register("Reach-v0", entry_point=ReachEnv, max_episode_steps=STEPS, disable_env_checker=True)
gym.register("ReachPixels-v0", entry_point=make_pixels, max_episode_steps=STEPS, disable_env_checker=True)
