"""Any `gymnasium.vector.VectorEnv` as an env group.

What an env can do decides how densely its slots are used, never what an episode is:

* chunked steps and `reset_mask` (autoreset DISABLED): one call per chunk, finished slots are refilled one by one;
* `reset_mask` only: the K actions of a chunk are played one by one. A slot that ends in the middle is reset at once, only so
  that the env may be stepped at all; nothing of that is recorded, and its next episode starts with a reset of its own;
* autoreset NEXT_STEP or SAME_STEP: slots cannot be reset to a given episode, so all start together, and what the env plays
  in a slot after its episode's end is ignored.
"""

from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv

from vla_train.config import EnvConfig
from vla_train.envs.shard import EnvFaultError, EnvShard, ShardResult, action_bounds, check_instructions, check_result
from vla_train.types import EnvDescription, EpisodeSpec


class VectorShard(EnvShard):
    """A vector env.

    Args:
        env: The vector env; this group closes it.
        config: Image key, instruction and time limit.
        chunk_size: K.
        seed: Seed of resets that belong to no episode.
    """

    def __init__(self, env: VectorEnv, *, config: EnvConfig, chunk_size: int, seed: int) -> None:
        self._env = env
        self._config = config
        self._chunk_size = chunk_size
        self._seed = seed
        self._slots = env.num_envs
        try:
            self.description = self._describe()
        except BaseException:
            self.close()
            raise
        self._steps_played = np.zeros(self._slots, np.int64)
        self._started = False
        self._images = np.zeros((self._slots, *self.description.image_shape), np.uint8)
        self._instructions: tuple[str, ...] = ("",) * self._slots

    def _describe(self) -> EnvDescription:
        env, unwrapped, name = self._env, self._env.unwrapped, self._config.id
        self._chunked = env.action_space.shape is not None and len(env.action_space.shape) == 3
        single = env.single_action_space
        if self._chunked:
            assert isinstance(single, gym.spaces.Box)
            assert env.action_space.shape is not None
            if env.action_space.shape[1] != self._chunk_size:
                raise ValueError(f"{name} plays chunks of {env.action_space.shape[1]} actions, the policy {self._chunk_size}")
            if single.shape[:1] == (self._chunk_size,) and len(single.shape) == 2:
                single = gym.spaces.Box(single.low[0], single.high[0])
        low, high = action_bounds(single, name)
        if "autoreset_mode" not in env.metadata:
            raise ValueError(f"{name} does not say how it resets itself (metadata['autoreset_mode'])")
        self._whole_resets = env.metadata["autoreset_mode"] != AutoresetMode.DISABLED
        if self._chunked and self._whole_resets:
            raise ValueError(f"{name} plays chunks but resets itself: make it with autoreset_mode=AutoresetMode.DISABLED")
        own_limit = getattr(unwrapped, "max_episode_steps", None)
        if own_limit is None and env.spec is not None:
            own_limit = env.spec.max_episode_steps
        self._limit = None  # the env keeps the time unless told otherwise here
        limit = self._config.max_episode_steps
        if limit is not None and limit != own_limit:
            if self._chunked:
                raise ValueError(f"{name} does not take max_episode_steps, and a chunk cannot be cut from outside")
            self._limit = limit
        elif limit is None and own_limit is None and not hasattr(unwrapped, "num_init_states"):
            raise ValueError(f"{name} has no time limit: set env.max_episode_steps")
        instructions = getattr(unwrapped, "instructions", {})
        task_ids = tuple(getattr(unwrapped, "task_ids", (0,)))
        if not isinstance(instructions, dict):
            instructions = dict(zip(task_ids, instructions, strict=True))
        return EnvDescription(
            num_slots=self._slots,
            image_shape=self._image_shape(),
            mirrored_images=bool(getattr(unwrapped, "mirrored_images", False)),
            action_low=low,
            action_high=high,
            task_ids=task_ids,
            num_init_states=dict(getattr(unwrapped, "num_init_states", {})),
            instructions=instructions,
            suite=getattr(unwrapped, "suite", None),
            max_episode_steps=limit if limit is not None else own_limit,
            whole_resets=self._whole_resets,
        )

    def _image_shape(self) -> tuple[int, int, int]:
        key, name, space = self._config.image_key, self._config.id, self._env.single_observation_space
        if isinstance(space, gym.spaces.Dict):
            if key not in space.spaces:
                raise ValueError(f"{name}: no image {key!r} in the observation ({', '.join(space.spaces)}): set env.image_key")
            if "instruction" not in space.spaces and self._config.instruction is None:
                raise ValueError(f"{name}: the observation has no instruction: set env.instruction")
            space = space.spaces[key]
        elif self._config.instruction is None:
            raise ValueError(f"{name}: the observation has no instruction: set env.instruction")
        if space.shape is None or len(space.shape) != 3 or space.shape[2] != 3 or space.dtype != np.uint8:
            raise ValueError(f"{name}: the image must be uint8 (H, W, 3), got {space}")
        height, width, channels = space.shape
        return height, width, channels

    @property
    def render_span(self) -> tuple[float, float] | None:
        return getattr(self._env.unwrapped, "render_span", None)

    def reset(self, slots: Sequence[int], specs: Sequence[EpisodeSpec]) -> ShardResult:
        # Slots that were never reset start as copies of the first episode: most envs want a full reset first.
        given = dict(zip(slots, specs, strict=True))
        everything = self._whole_resets or not self._started
        complete = [given.get(slot, specs[0]) for slot in range(self._slots)]
        mask = np.ones(self._slots, bool) if everything else np.isin(np.arange(self._slots), slots)
        options: dict[str, Any] = {} if self._whole_resets else {"reset_mask": mask}
        seeds: list[int | None] = [spec.seed if mask[slot] else None for slot, spec in enumerate(complete)]
        if self.description.num_init_states:
            options["task_id"] = np.array([spec.task_id for spec in complete])
            options["init_state_id"] = np.array([spec.init_state_id for spec in complete])
        observation, _ = self._reset_env(seeds, options)
        self._started = True
        self._steps_played[mask] = 0
        self._observe(observation)
        check_instructions(self._instructions, slots)
        return self._result()

    def _reset_env(self, seeds: list[int | None], options: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        if self.description.num_init_states:
            return self._env.reset(options=options)  # a stored state is the whole start; there is nothing to seed
        try:
            return self._env.reset(seed=seeds, options=options or None)  # type: ignore[arg-type]
        except (TypeError, gym.error.Error) as error:
            raise ValueError(
                f"{self._config.id} cannot be reset with one seed per slot ({error}): add vectorization_mode=sync to env.kwargs"
            ) from error

    def step(self, actions: np.ndarray, active: np.ndarray) -> ShardResult:
        if not self._started:
            raise EnvFaultError("step before the first reset")
        result = self._step_chunk(actions, active) if self._chunked else self._step_singly(actions, active)
        check_result(result, active, image_shape=self.description.image_shape, chunk_size=self._chunk_size)
        return result

    def _step_chunk(self, actions: np.ndarray, active: np.ndarray) -> ShardResult:
        observation, rewards, terminated, truncated, info = self._env.step(actions)
        self._observe(observation)
        if "num_steps" not in info:
            raise EnvFaultError(f"{self._config.id} plays chunks but does not say how many actions it played (num_steps)")
        rewards = np.asarray(rewards, np.float32)
        return ShardResult(
            images=self._images,
            instructions=self._instructions,
            rewards=rewards,
            final_rewards=rewards,
            num_steps=np.asarray(info["num_steps"], np.int32),
            terminated=np.asarray(terminated, bool),
            truncated=np.asarray(truncated, bool),
        )

    def _step_singly(self, actions: np.ndarray, active: np.ndarray) -> ShardResult:
        result = self._result()
        playing = active.copy()
        ended = np.zeros(self._slots, bool)
        observation = None
        for index in range(self._chunk_size):
            if not playing.any():
                break
            if index > 0 and ended.any() and not self._whole_resets:
                self._env.reset(options={"reset_mask": ended})  # nobody's episode: see the module's docstring
            observation, rewards, terminated, truncated, _ = self._env.step(actions[:, index])
            self._steps_played += 1
            rewards = np.asarray(rewards, np.float32)
            terminated, truncated = np.array(terminated, bool), np.array(truncated, bool)
            ended = terminated | truncated
            if self._limit is not None:
                truncated |= ~terminated & (self._steps_played >= self._limit)
            result.rewards[playing] += rewards[playing]
            result.final_rewards[playing] = rewards[playing]
            result.num_steps[playing] += 1
            result.terminated[playing] = terminated[playing]
            result.truncated[playing] = truncated[playing]
            playing &= ~(terminated | truncated)
        if ended.any() and not self._whole_resets:
            # An env must not be stepped past an end; slots that stay free would otherwise be.
            observation, _ = self._env.reset(options={"reset_mask": ended})
        self._observe(observation)
        return ShardResult(
            images=self._images,
            instructions=self._instructions,
            rewards=result.rewards,
            final_rewards=result.final_rewards,
            num_steps=result.num_steps,
            terminated=result.terminated,
            truncated=result.truncated,
        )

    def _observe(self, observation: Any) -> None:
        if isinstance(observation, dict):
            self._images = np.asarray(observation[self._config.image_key])
            texts = observation.get("instruction")
        else:
            self._images, texts = np.asarray(observation), None
        if texts is not None:
            self._instructions = tuple(str(text) for text in texts)
        else:
            assert self._config.instruction is not None
            self._instructions = (self._config.instruction,) * self._slots
        expected = (self._slots, *self.description.image_shape)
        if self._images.shape != expected or self._images.dtype != np.uint8:
            raise EnvFaultError(f"images must be uint8 of shape {expected}, got {self._images.dtype} {self._images.shape}")

    def _result(self) -> ShardResult:
        return ShardResult(
            images=self._images,
            instructions=self._instructions,
            rewards=np.zeros(self._slots, np.float32),
            final_rewards=np.zeros(self._slots, np.float32),
            num_steps=np.zeros(self._slots, np.int32),
            terminated=np.zeros(self._slots, bool),
            truncated=np.zeros(self._slots, bool),
        )

    def close(self) -> None:
        self._env.close()
