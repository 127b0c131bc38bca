"""A small env for the test that training learns: `corners_env:Corners-v0`, a vector env with chunked steps.

A red block stands on the left or the right of the image, and the instruction says whether to lift or to lower it: of the four
corners one is right, and neither the image nor the words alone tell which. An action (2,) moves the hand, a white square that
starts in the middle; the episode ends when it is in a corner, with reward 1 in the right one. N slots, K actions.

`corners_env:StoredCorners-v0` is the same with stored initial states, two tasks (to lift and to lower), and an expert.
"""

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv

SIZE, BLOCK, HAND = 32, 14, 4
"""Sides in pixels."""
INSTRUCTIONS = {1: "lift the red block", -1: "lower the red block"}
MAX_EPISODE_STEPS = 6


class CornersVectorEnv(VectorEnv):
    """See the module's docstring. Finished slots are frozen until they are reset."""

    metadata: dict[str, Any] = {"autoreset_mode": AutoresetMode.DISABLED}  # noqa: RUF012

    def __init__(self, num_envs: int, *, chunk_size: int, max_episode_steps: int = MAX_EPISODE_STEPS) -> None:
        self.num_envs = num_envs
        self.max_episode_steps = max_episode_steps
        letters = "".join(sorted(set("".join(INSTRUCTIONS.values()))))
        self.single_observation_space = gym.spaces.Dict(
            {
                "image": gym.spaces.Box(0, 255, (SIZE, SIZE, 3), np.uint8),
                "instruction": gym.spaces.Text(64, charset=letters),
            }
        )
        self.single_action_space = gym.spaces.Box(-1.0, 1.0, (2,), np.float32)
        self.observation_space = gym.vector.utils.batch_space(self.single_observation_space, num_envs)
        self.action_space = gym.spaces.Box(-1.0, 1.0, (num_envs, chunk_size, 2), np.float32)
        self.corners = np.ones((num_envs, 2), np.float32)
        """Where each slot's hand should go: -1 or 1, horizontally (to the right) and vertically (up)."""
        self._hands = np.zeros((num_envs, 2))
        self._rows = np.zeros(num_envs, np.int64)
        self._steps = np.zeros(num_envs, np.int64)
        self._ended = np.ones(num_envs, bool)

    def reset(self, *, seed: Any = None, options: dict[str, Any] | None = None) -> tuple[dict[str, Any], dict[str, Any]]:
        mask = np.ones(self.num_envs, bool) if options is None else options["reset_mask"]
        for slot in np.flatnonzero(mask):
            random = np.random.default_rng(seed[slot])
            self.corners[slot] = random.choice([-1, 1], 2)
            self._rows[slot] = random.integers(SIZE - BLOCK)
        self._hands[mask], self._steps[mask], self._ended[mask] = 0, 0, False
        return self._observe(), {}

    def step(self, actions: np.ndarray) -> tuple[dict[str, Any], np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        num_steps = np.zeros(self.num_envs, np.int64)
        terminated = np.zeros(self.num_envs, bool)
        for action in actions.transpose(1, 0, 2):
            playing = ~self._ended
            self._hands[playing] = np.clip(self._hands[playing] + 0.8 * action[playing], -1, 1)
            num_steps += playing
            self._steps += playing
            terminated |= playing & (np.abs(self._hands) == 1).all(axis=1)
            self._ended |= terminated | (self._steps >= self.max_episode_steps)
        rewards = (terminated & (self._hands == self.corners).all(axis=1)).astype(np.float64)
        return self._observe(), rewards, terminated, self._ended & ~terminated, {"num_steps": num_steps}

    def _observe(self) -> dict[str, Any]:
        images = np.full((self.num_envs, SIZE, SIZE, 3), 90, np.uint8)
        for slot, image in enumerate(images):
            row, column = self._rows[slot], 2 if self.corners[slot, 0] < 0 else SIZE - BLOCK - 2
            image[row : row + BLOCK, column : column + BLOCK] = (230, 30, 30)
            x, y = ((self._hands[slot] * (1, -1) + 1) / 2 * (SIZE - HAND)).astype(int)
            image[y : y + HAND, x : x + HAND] = 250
        return {"image": images, "instruction": tuple(INSTRUCTIONS[int(up)] for up in self.corners[:, 1])}


class StoredCornersVectorEnv(CornersVectorEnv):
    """See the module's docstring. States of even numbers have the block on the left."""

    num_states = 16
    task_ids = (0, 1)
    num_init_states: dict[int, int] = dict.fromkeys(task_ids, num_states)
    started: list[tuple[int, int]] = []  # noqa: RUF012
    """Task and initial state of all episodes begun in this process."""

    def reset(self, *, seed: Any = None, options: dict[str, Any] | None = None) -> tuple[dict[str, Any], dict[str, Any]]:
        options = options or {}
        mask = options.get("reset_mask", np.ones(self.num_envs, bool))
        tasks = np.broadcast_to(options["task_id"], self.num_envs)
        states = np.broadcast_to(options["init_state_id"], self.num_envs)
        super().reset(seed=states, options={"reset_mask": mask})
        self.corners[mask] = np.column_stack([np.where(states % 2, 1, -1), np.where(tasks, -1, 1)])[mask]
        self.started.extend(zip(tasks[mask].tolist(), states[mask].tolist(), strict=True))
        return self._observe(), {}

    def make_expert(self, slot: int = 0, *, noise: float = 0.0, seed: int | None = None) -> "CornersExpert":
        return CornersExpert(self, slot)


class CornersExpert:
    """Goes straight to the right corner."""

    def __init__(self, env: CornersVectorEnv, slot: int) -> None:
        self._env, self._slot = env, slot

    def act(self) -> np.ndarray:
        return self._env.corners[self._slot]


gym.register("Corners-v0", vector_entry_point=CornersVectorEnv, max_episode_steps=MAX_EPISODE_STEPS)
gym.register("StoredCorners-v0", vector_entry_point=StoredCornersVectorEnv, max_episode_steps=MAX_EPISODE_STEPS)
