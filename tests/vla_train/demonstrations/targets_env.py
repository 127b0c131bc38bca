"""A vector env that brings an expert: `targets_env:Targets-v0`. A dot must be moved to a target in a plane.

Tasks 0 and 1 have the target on the left and on the right; the expert declines task 2. The initial state says how high the dot
starts. Made with `cameras=[]` it draws nothing.
"""

from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv

SIZE = 16
NUM_STATES = 10
MAX_EPISODE_STEPS = 12
INSTRUCTIONS = ("go left", "go right", "fly")


class TargetsVectorEnv(VectorEnv):
    """See the module's docstring."""

    metadata: dict[str, Any] = {  # noqa: RUF012
        "autoreset_mode": AutoresetMode.DISABLED,
        "reports_success": True,
        "render_fps": 20,
    }
    num_drawn = 0
    """Pictures drawn by all envs of this process."""
    suite = "targets"
    mirrored_images = True
    max_episode_steps = MAX_EPISODE_STEPS

    def __init__(
        self,
        num_envs: int = 1,
        *,
        cameras: Sequence[str] = ("agentview",),
        task_ids: Sequence[int] = (0, 1),
        wobbly: bool = False,
    ) -> None:
        self.num_envs = num_envs
        self.task_ids = tuple(task_ids)
        self.num_init_states = dict.fromkeys(self.task_ids, NUM_STATES)
        self._cameras, self._wobbly = tuple(cameras), wobbly
        names = {"agentview": "image", "wrist": "wrist_image"}
        spaces: dict[str, gym.Space] = {
            names[camera]: gym.spaces.Box(0, 255, (SIZE, SIZE, 3), np.uint8) for camera in self._cameras
        }
        spaces["state"] = gym.spaces.Box(-np.inf, np.inf, (3,), np.float32)
        spaces["instruction"] = gym.spaces.Text(32)
        self.single_observation_space = gym.spaces.Dict(spaces)
        self.observation_space = gym.vector.utils.batch_space(self.single_observation_space, num_envs)
        self.single_action_space = gym.spaces.Box(-1.0, 1.0, (2,), np.float32)
        self.action_space = gym.vector.utils.batch_space(self.single_action_space, num_envs)
        self.dots = np.zeros((num_envs, 2))
        self.tasks = np.zeros(num_envs, np.int64)
        self._steps = np.zeros(num_envs, np.int64)

    @property
    def targets(self) -> np.ndarray:
        """(N, 2)."""
        return np.stack([np.where(self.tasks == 0, -1.0, 1.0), np.zeros(self.num_envs)], axis=1)

    def reset(self, *, seed: Any = None, options: dict[str, Any] | None = None) -> tuple[dict[str, Any], dict[str, Any]]:
        options = options or {}
        mask = options.get("reset_mask", np.ones(self.num_envs, bool))
        tasks = np.broadcast_to(options.get("task_id", self.task_ids[0]), self.num_envs)
        states = np.broadcast_to(options.get("init_state_id", 0), self.num_envs)
        self.tasks[mask], self._steps[mask] = tasks[mask], 0
        self.dots[mask] = np.stack([np.zeros(self.num_envs), states / NUM_STATES], axis=1)[mask]
        return self._observe(), {}

    def step(self, actions: np.ndarray) -> tuple[dict[str, Any], np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        self.dots += 0.3 * actions + (np.random.default_rng().normal(size=2) if self._wobbly else 0)
        self._steps += 1
        success = np.abs(self.dots - self.targets).max(axis=1) < 0.1
        truncated = ~success & (self._steps >= MAX_EPISODE_STEPS)
        return self._observe(), success.astype(float), success, truncated, {"success": success}

    def make_expert(self, slot: int = 0, *, noise: float = 0.0, seed: int | None = None) -> "TargetsExpert":
        if self.tasks[slot] == 2:
            raise ValueError(f"cannot {INSTRUCTIONS[2]}: it has no wings")
        return TargetsExpert(self, slot, noise=noise, seed=seed)

    def _observe(self) -> dict[str, Any]:
        states = np.column_stack([self.dots, self._steps]).astype(np.float32)
        observation: dict[str, Any] = {"state": states, "instruction": tuple(INSTRUCTIONS[task] for task in self.tasks)}
        for camera in self._cameras:
            TargetsVectorEnv.num_drawn += self.num_envs
            images = np.zeros((self.num_envs, SIZE, SIZE, 3), np.uint8)
            for image, dot in zip(images, self.dots, strict=True):
                row, column = np.clip((dot[::-1] + 1) / 2 * (SIZE - 1), 0, SIZE - 1).astype(int)
                image[row, column] = 255
                image[..., 2] = int(abs(dot[0]) * 100) % 256
            observation["image" if camera == "agentview" else "wrist_image"] = images
        return observation


class TargetsExpert:
    """Goes straight to the target; one in four goes the other way for ever."""

    def __init__(self, env: TargetsVectorEnv, slot: int, *, noise: float, seed: int | None) -> None:
        self._env, self._slot, self._noise = env, slot, noise
        self._rng = np.random.default_rng(seed)
        self._sign = -1 if self._rng.random() < 0.25 else 1
        self.intended = np.zeros(2)

    def act(self) -> np.ndarray:
        way = self._env.targets[self._slot] - self._env.dots[self._slot]
        self.intended = np.clip(self._sign * way / 0.3, -1, 1)
        return np.clip(self.intended + self._noise * self._rng.normal(size=2), -1, 1)


class TimidExpert(TargetsExpert):
    """Gives up where its way leads through heights between 0.2 and 0.4."""

    def act(self) -> np.ndarray:
        if 0.2 < self._env.dots[self._slot, 1] < 0.4 and self._env.dots[self._slot, 0]:
            raise ValueError("it is high up here")
        return super().act()


def timid_expert(env: Any, slot: int, *, noise: float, seed: int) -> Any:
    """An expert of the user's."""
    return TimidExpert(env, slot, noise=noise, seed=seed)


def lazy_expert(env: Any, slot: int, *, noise: float, seed: int) -> Any:
    """An expert of the user's: does nothing."""
    return type("Lazy", (), {"act": lambda self: np.zeros(2)})()


gym.register("Targets-v0", vector_entry_point=TargetsVectorEnv)
