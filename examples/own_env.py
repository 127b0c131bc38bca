"""An env of your own: any Gymnasium env with continuous, bounded actions will do.

    PYTHONPATH=examples python -m vla_train train --env.id own_env:TouchTarget-v0 --output runs/own-env

`own_env:TouchTarget-v0` imports this file, which registers the env. A white hand must touch a red target within eight steps.
What the trainer takes from an env: `image` and `instruction` in the observation, and `info["success"]`. All three can be told
otherwise: --env.image-key, --env.instruction, --env.success.
"""

from typing import Any

import gymnasium as gym
import numpy as np

SIZE, HAND, TARGET = 24, 3, 5
"""Sides in pixels."""
STEPS = 8
INSTRUCTION = "touch the red target"


class TouchTargetEnv(gym.Env[dict[str, Any], np.ndarray]):
    """Positions are (x, y) in [-1, 1]; an action (2,) in [-1, 1] moves the hand by a third of itself."""

    observation_space = gym.spaces.Dict(
        {
            "image": gym.spaces.Box(0, 255, (SIZE, SIZE, 3), np.uint8),
            "state": gym.spaces.Box(-1, 1, (2,), np.float32),
            "instruction": gym.spaces.Text(len(INSTRUCTION), charset=frozenset(INSTRUCTION)),
        }
    )
    action_space = gym.spaces.Box(-1, 1, (2,), np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[dict[str, Any], dict[str, Any]]:
        super().reset(seed=seed)
        angle = self.np_random.uniform(0, 2 * np.pi)
        self._target = 0.8 * np.array([np.cos(angle), np.sin(angle)])
        self._hand = np.zeros(2)
        return self._observe(), {}

    def step(self, action: np.ndarray) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        before = np.linalg.norm(self._target - self._hand)
        self._hand = np.clip(self._hand + np.clip(action, -1, 1) / 3, -1, 1)
        distance = np.linalg.norm(self._target - self._hand)
        touched = bool(distance < 0.25)
        return self._observe(), float(before - distance + touched), touched, False, {"success": touched}

    def _observe(self) -> dict[str, Any]:
        image = np.full((SIZE, SIZE, 3), 60, np.uint8)
        for position, side, colour in ((self._target, TARGET, (230, 30, 30)), (self._hand, HAND, (250, 250, 250))):
            x, y = np.round((position + 1) / 2 * (SIZE - side)).astype(int)
            image[y : y + side, x : x + side] = colour
        return {"image": image, "state": self._hand.astype(np.float32), "instruction": INSTRUCTION}


gym.register("TouchTarget-v0", entry_point=TouchTargetEnv, max_episode_steps=STEPS)
