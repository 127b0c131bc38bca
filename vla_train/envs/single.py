"""Any plain Gymnasium env as an env group: one instance per slot.

Only slots that are playing are stepped, a chunk stops where its episode ends, and the env is rendered once per chunk.
"""

from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np

from vla_train.config import EnvConfig
from vla_train.envs.shard import EnvFaultError, EnvShard, ShardResult, action_bounds, check_instructions, check_result
from vla_train.types import EnvDescription, EpisodeSpec


class SingleEnvsShard(EnvShard):
    """One `gym.make` env per slot.

    Args:
        config: `image_key` "render" takes `env.render()` as the image; any other key is looked up in the observation.
        kwargs: Arguments of `gym.make`.
        chunk_size: K.
    """

    def __init__(self, config: EnvConfig, *, kwargs: dict[str, Any], chunk_size: int) -> None:
        self._config = config
        self._chunk_size = chunk_size
        arguments = dict(kwargs)
        if config.image_key == "render":
            arguments.setdefault("render_mode", "rgb_array")
        if config.max_episode_steps is not None:
            arguments["max_episode_steps"] = config.max_episode_steps
        self._envs: list[gym.Env[Any, Any]] = []
        try:
            for _ in range(config.envs_per_worker):
                self._envs.append(gym.make(config.id, **arguments))
            self.description = self._describe(self._envs[0])
        except BaseException:
            self.close()
            raise
        slots = config.envs_per_worker
        self._images = np.zeros((slots, *self.description.image_shape), np.uint8)
        self._instructions = [""] * slots

    def _describe(self, env: gym.Env[Any, Any]) -> EnvDescription:
        low, high = action_bounds(env.action_space, self._config.id)
        limit = env.spec.max_episode_steps if env.spec is not None else None
        if limit is None:
            raise ValueError(f"{self._config.id} has no time limit: set env.max_episode_steps")
        observation, _ = env.reset(seed=0)
        image = self._image_of(env, observation)
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
            raise ValueError(f"{self._config.id}: the image must be uint8 (H, W, 3), got {image.dtype} {image.shape}")
        self._instruction_of(observation)
        return EnvDescription(
            num_slots=self._config.envs_per_worker,
            image_shape=(int(image.shape[0]), int(image.shape[1]), 3),
            mirrored_images=self._config.image_key != "render" and bool(getattr(env.unwrapped, "mirrored_images", False)),
            action_low=low,
            action_high=high,
            task_ids=(0,),
            num_init_states={},
            instructions={} if self._config.instruction is None else {0: self._config.instruction},
            suite=None,
            max_episode_steps=limit,
            whole_resets=False,
        )

    def _image_of(self, env: gym.Env[Any, Any], observation: Any) -> np.ndarray:
        key = self._config.image_key
        if key == "render":
            image = env.render()
            if not isinstance(image, np.ndarray):
                raise EnvFaultError(f"{self._config.id}: render() must return an array, got {type(image).__name__}")
            return image
        if isinstance(observation, np.ndarray) and observation.ndim == 3:
            return observation
        if not isinstance(observation, dict) or key not in observation:
            found = ", ".join(observation) if isinstance(observation, dict) else type(observation).__name__
            raise ValueError(f"{self._config.id}: no image {key!r} in the observation ({found}): set env.image_key")
        return np.asarray(observation[key])

    def _instruction_of(self, observation: Any) -> str:
        if isinstance(observation, dict) and "instruction" in observation:
            return str(observation["instruction"])
        if self._config.instruction is None:
            raise ValueError(f"{self._config.id}: the observation has no instruction: set env.instruction")
        return self._config.instruction

    def _observe(self, slot: int, observation: Any) -> None:
        image = self._image_of(self._envs[slot], observation)
        if image.shape != self.description.image_shape or image.dtype != np.uint8:
            expected = self.description.image_shape
            raise EnvFaultError(f"slot {slot}: the image must be uint8 {expected}, got {image.dtype} {image.shape}")
        self._images[slot] = image
        self._instructions[slot] = self._instruction_of(observation)

    def reset(self, slots: Sequence[int], specs: Sequence[EpisodeSpec]) -> ShardResult:
        for slot, spec in zip(slots, specs, strict=True):
            observation, _ = self._envs[slot].reset(seed=spec.seed)
            self._observe(slot, observation)
        check_instructions(self._instructions, slots)
        return self._result()

    def step(self, actions: np.ndarray, active: np.ndarray) -> ShardResult:
        result = self._result()
        for slot in np.flatnonzero(active):
            for action in actions[slot]:
                observation, reward, terminated, truncated, _ = self._envs[slot].step(action)
                result.rewards[slot] += float(reward)
                result.final_rewards[slot] = float(reward)
                result.num_steps[slot] += 1
                result.terminated[slot], result.truncated[slot] = terminated, truncated
                if terminated or truncated:
                    break
            self._observe(int(slot), observation)
        check_result(result, active, image_shape=self.description.image_shape, chunk_size=self._chunk_size)
        return result

    def _result(self) -> ShardResult:
        slots = len(self._envs)
        return ShardResult(
            images=self._images,
            instructions=tuple(self._instructions),
            rewards=np.zeros(slots, np.float32),
            final_rewards=np.zeros(slots, np.float32),
            num_steps=np.zeros(slots, np.int32),
            terminated=np.zeros(slots, bool),
            truncated=np.zeros(slots, bool),
        )

    def close(self) -> None:
        for env in self._envs:
            env.close()
        self._envs = []
