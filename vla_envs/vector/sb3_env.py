"""Stable-Baselines3's `VecEnv` around a Gymnasium vector env that resets within the step.

Both say the same in other words: where an episode ended, the observation is the next one's first, and the last one of the
episode is kept aside. The single place that imports Stable-Baselines3; `sb3.py` says what for.
"""

from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode
from stable_baselines3.common.vec_env import VecEnv

from vla_envs.vector.infos import of_slot


class SB3Env(VecEnv):
    """See `as_sb3_env`."""

    def __init__(self, envs: gym.vector.VectorEnv) -> None:
        mode, space = envs.metadata.get("autoreset_mode"), envs.single_observation_space
        if mode != AutoresetMode.SAME_STEP:
            raise ValueError(f"Stable-Baselines3 resets within the step: make envs with autoreset_mode='SameStep', not {mode}")
        if not isinstance(space, gym.spaces.Dict):
            raise ValueError(f"observations must be a dict, got {space}")
        self._envs: Any = envs  # `call`, `get_attr` and `set_attr` are in all of Gymnasium's vector envs, but not in their base
        self._actions: np.ndarray | None = None
        self._kept = {key: part for key, part in space.items() if not isinstance(part, gym.spaces.Text)}
        super().__init__(envs.num_envs, gym.spaces.Dict(self._kept), envs.single_action_space)

    def reset(self) -> dict[str, np.ndarray]:
        """Begin an episode in all N envs, with the seeds and options that `seed` and `set_options` have left.

        Raises:
            ValueError: Options do not name the same things for all envs.
        """
        names = set().union(*self._options)
        if any(set(options) != names for options in self._options):
            raise ValueError(f"set_options: all envs need the same options, got {self._options}")
        options = {name: [of_env[name] for of_env in self._options] for name in names}
        observation, info = self._envs.reset(seed=None if None in self._seeds else self._seeds, options=options)
        self._reset_seeds()
        self._reset_options()
        self.reset_infos = [of_slot(info, slot) for slot in range(self.num_envs)]
        return self._without_texts(observation)

    def step_async(self, actions: np.ndarray) -> None:
        """Keep the actions for `step_wait`."""
        self._actions = actions

    def step_wait(self) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray, list[dict[str, Any]]]:
        """Play them: observations, rewards (N,), whether episodes have ended (N,), and N infos of the step itself."""
        observation, reward, terminated, truncated, info = self._envs.step(self._actions)
        done = terminated | truncated
        infos = []
        for slot in range(self.num_envs):
            said = of_slot(info, slot)
            if done[slot]:
                last = said.pop("final_obs")
                ended = said.pop("final_info")
                self.reset_infos[slot] = said
                said = {**ended, "terminal_observation": self._without_texts(last)}
            said["TimeLimit.truncated"] = bool(truncated[slot] and not terminated[slot])
            infos.append(said)
        return self._without_texts(observation), reward.astype(np.float32), done, infos

    def close(self) -> None:
        """Close the vector env."""
        self._envs.close()

    def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
        """As the vector env's, of the envs in `indices`."""
        values = self._envs.get_attr(attr_name)
        return [values[slot] for slot in self._get_indices(indices)]

    def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None:
        """Give the envs in `indices` an attribute, as the vector env's `set_attr`."""
        values = list(self._envs.get_attr(attr_name))
        for slot in self._get_indices(indices):
            values[slot] = value
        self._envs.set_attr(attr_name, values)

    def env_method(self, method_name: str, *method_args: Any, indices: Any = None, **method_kwargs: Any) -> list[Any]:
        """As the vector env's `call`: it is called for all, and the results of those in `indices` are returned."""
        results = self._envs.call(method_name, *method_args, **method_kwargs)
        return [results[slot] for slot in self._get_indices(indices)]

    def env_is_wrapped(self, wrapper_class: type[gym.Wrapper], indices: Any = None) -> list[bool]:
        """N times no: the envs inside are no envs of their own."""
        return [False for _ in self._get_indices(indices)]

    def get_images(self) -> Sequence[np.ndarray | None]:
        """N pictures as `render` of the vector env gives them; None each without `render_mode`."""
        return self._envs.render() or (None,) * self.num_envs

    def _without_texts(self, observation: dict[str, Any]) -> dict[str, np.ndarray]:
        return {key: observation[key] for key in self._kept}
