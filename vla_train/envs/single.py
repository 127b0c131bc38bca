"""Any plain Gymnasium env as a shard: one instance per slot.

Only slots that are playing are stepped, a chunk stops where its episode ends, and the env is rendered once per chunk unless it
is filmed.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import gymnasium as gym
import numpy as np

from vla_train.config import EnvConfig
from vla_train.envs.observations import RENDER, array_specs, has_instruction, is_image, read_array, read_instruction
from vla_train.envs.shard import (
    NOBODY,
    EnvFaultError,
    EnvShard,
    ShardResult,
    action_bounds,
    check_instructions,
    check_observations,
    check_played,
)
from vla_train.envs.success import find_info_key, info_key, says_success
from vla_train.types import IMAGE, ArraySpec, EnvDescription, EpisodeSpec


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
        if config.image_key == RENDER:
            arguments.setdefault("render_mode", "rgb_array")
        if config.max_episode_steps is not None:
            arguments["max_episode_steps"] = config.max_episode_steps
        self._envs: list[gym.Env[Any, Any]] = []
        try:
            for _ in range(config.envs_per_worker):
                self._envs.append(gym.make(config.id, **arguments))
            self.description = self._describe(self._envs[0])
            self._success_key = self._find_success_key(self._envs[0])
        except BaseException:
            self.close()
            raise
        slots = config.envs_per_worker
        self._arrays = {key: np.zeros((slots, *spec.shape), spec.dtype) for key, spec in self.description.observations.items()}
        self._instructions = [""] * slots

    def _describe(self, env: gym.Env[Any, Any]) -> EnvDescription:
        low, high = action_bounds(env.action_space, self._config.id)
        limit = env.spec.max_episode_steps if env.spec is not None else None
        if limit is None:
            raise ValueError(f"{self._config.id} has no time limit: set env.max_episode_steps")
        specs = array_specs(env.observation_space, image_key=self._config.image_key)
        if self._config.image_key == RENDER:
            env.reset(seed=0)
            image = self._render(env)
            specs[IMAGE] = ArraySpec(image.shape, image.dtype.name)
            if not is_image(specs[IMAGE]):
                raise ValueError(f"{self._config.id}: render() must draw uint8 (H, W, 3), got {image.dtype} {image.shape}")
        return EnvDescription(
            num_slots=self._config.envs_per_worker,
            observations=specs,
            mirrored_images=self._config.image_key != RENDER and bool(getattr(env.unwrapped, "mirrored_images", False)),
            action_low=low,
            action_high=high,
            task_ids=(0,),
            num_init_states={},
            has_instruction=has_instruction(env.observation_space, self._config),
            suite=None,
            max_episode_steps=limit,
            whole_resets=False,
            robot_type=getattr(env.unwrapped, "robot_type", None),
            simulation=dict(getattr(env.unwrapped, "simulation", {})),
            actions_per_s=env.metadata.get("render_fps"),
        )

    def _find_success_key(self, env: gym.Env[Any, Any]) -> str | None:
        if self._config.success != "auto":
            return info_key(self._config)
        env.reset(seed=0)
        *_, info = env.step(np.clip(np.float32(0), self.description.action_low, self.description.action_high))
        return find_info_key(info, self._config)

    def _render(self, env: gym.Env[Any, Any]) -> np.ndarray:
        image = env.render()
        if not isinstance(image, np.ndarray):
            raise EnvFaultError(f"render() must return an array, got {type(image).__name__}")
        return image

    def _read(self, slot: int, observation: Any, key: str) -> np.ndarray:
        if key == IMAGE and self._config.image_key == RENDER:
            return self._render(self._envs[slot])
        return read_array(observation, key, image_key=self._config.image_key)

    def _observe(self, slot: int, observation: Any, keys: Sequence[str]) -> None:
        for key in keys:
            array = self._read(slot, observation, key)
            spec = {key: self.description.observations[key]}
            check_observations({key: array[None]}, spec, num_slots=1, slots=[0])
            self._arrays[key][slot] = array
        self._instructions[slot] = str(read_instruction(observation, self._config.instruction) or "")

    def reset(self, slots: Sequence[int], specs: Sequence[EpisodeSpec], keys: Sequence[str]) -> ShardResult:
        for slot, spec in zip(slots, specs, strict=True):
            observation, _ = self._envs[slot].reset(seed=spec.seed)
            self._observe(slot, observation, keys)
        if self.description.has_instruction:
            check_instructions(self._instructions, slots)
        return ShardResult.of_reset({key: self._arrays[key] for key in keys}, self._instructions)

    def step(
        self, actions: np.ndarray, active: np.ndarray, keys: Sequence[str], film: Mapping[int, bool] = NOBODY
    ) -> ShardResult:
        frames: dict[int, list[np.ndarray]] = {}
        result = ShardResult.of_reset({key: self._arrays[key] for key in keys}, self._instructions)
        for slot in np.flatnonzero(active).tolist():
            for action in actions[slot]:
                observation, reward, terminated, truncated, info = self._envs[slot].step(action)
                result.rewards[slot] += float(reward)
                result.num_steps[slot] += 1
                result.terminated[slot], result.truncated[slot] = terminated, truncated
                if self._success_key is not None:
                    result.succeeded[slot] |= says_success(info, self._success_key, ended=terminated or truncated)
                elif self._config.success == "terminated":
                    result.succeeded[slot] = terminated and float(reward) > 0
                if slot in film and (film[slot] or terminated or truncated):
                    frames.setdefault(slot, []).append(np.copy(self._read(slot, observation, IMAGE)))
                if terminated or truncated:
                    break
            if not (result.terminated[slot] or result.truncated[slot]):
                self._observe(slot, observation, keys)
        check_played(result, active, chunk_size=self._chunk_size)
        shown = {slot: np.stack(pictures) for slot, pictures in frames.items()}
        return replace(result, instructions=tuple(self._instructions), frames=shown)

    def close(self) -> None:
        for env in self._envs:
            env.close()
        self._envs = []
