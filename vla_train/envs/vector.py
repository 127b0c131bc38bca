"""Any `gymnasium.vector.VectorEnv` as a shard.

What an env can do decides how densely its slots are used, never what an episode is:

* chunked steps and `reset_mask` (autoreset DISABLED): one call per chunk, finished slots are refilled one by one;
* `reset_mask` only: the K actions of a chunk are played one by one. A slot that ends in the middle is reset at once, only so
  that the env may be stepped at all; nothing of that is recorded, and its next episode starts with a reset of its own;
* autoreset NEXT_STEP or SAME_STEP: slots cannot be reset to a given episode, so all start together, and what the env plays
  in a slot after its episode's end is ignored.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv

from vla_train.config import EnvConfig
from vla_train.envs.observations import array_specs, has_instruction, read_array, read_instruction
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
from vla_train.envs.success import find_info_key, info_key, say_success
from vla_train.types import IMAGE, EnvDescription, EpisodeSpec, on_host


class VectorShard(EnvShard):
    """A vector env.

    An env that says of its steps whether they succeeded (`info["success"]`) may declare `metadata["reports_success"] = True`;
    of others one step is tried.

    Args:
        env: The vector env; this shard closes it.
        config: Image key, instruction, success and time limit.
        chunk_size: K.
        tensors: Leave observations that are tensors on a GPU there.
    """

    def __init__(self, env: VectorEnv, *, config: EnvConfig, chunk_size: int, tensors: bool = False) -> None:
        self._env = env
        self._config = config
        self._chunk_size = chunk_size
        self._tensors = tensors
        self._slots = env.num_envs
        self._steps_played = np.zeros(self._slots, np.int64)
        self._started = False
        self._filmed: list[int] = []
        """Slots of which the env shows all frames."""
        try:
            self.description = self._describe()
            self._success_key = self._find_success_key()
        except BaseException:
            self.close()
            raise

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
        limit = own_limit if self._config.max_episode_steps is None else self._config.max_episode_steps
        if self._chunked and limit != own_limit:
            raise ValueError(f"{name} does not take max_episode_steps, and a chunk cannot be cut from outside")
        if limit is None and not hasattr(unwrapped, "num_init_states"):
            raise ValueError(f"{name} has no time limit: set env.max_episode_steps")
        self._limit = None if self._chunked else limit  # registered ones, too: Gymnasium leaves those to the vector env
        fps = env.metadata.get("render_fps")  # of steps, each of a whole chunk where the env takes chunks
        return EnvDescription(
            num_slots=self._slots,
            observations=array_specs(env.single_observation_space, image_key=self._config.image_key),
            mirrored_images=bool(getattr(unwrapped, "mirrored_images", False)),
            action_low=low,
            action_high=high,
            task_ids=tuple(getattr(unwrapped, "task_ids", (0,))),
            num_init_states=dict(getattr(unwrapped, "num_init_states", {})),
            has_instruction=has_instruction(env.single_observation_space, self._config),
            suite=getattr(unwrapped, "suite", None),
            max_episode_steps=limit,
            whole_resets=self._whole_resets,
            robot_type=getattr(unwrapped, "robot_type", None),
            simulation=dict(getattr(unwrapped, "simulation", {})),
            actions_per_s=None if fps is None else float(fps) * (self._chunk_size if self._chunked else 1),
        )

    def _find_success_key(self) -> str | None:
        if self._config.success != "auto":
            return info_key(self._config)
        if self._env.metadata.get("reports_success"):
            return "success"
        action = np.clip(0.0, self.description.action_low, self.description.action_high)
        shape = (self._slots, self._chunk_size, len(action)) if self._chunked else (self._slots, len(action))
        self._env.reset(seed=0)
        *_, info = self._env.step(np.broadcast_to(action, shape).astype(np.float32))
        return find_info_key(info, self._config)

    @property
    def env(self) -> VectorEnv:
        """The env itself: for an expert, which may see what a policy must not."""
        return self._env

    @property
    def render_span(self) -> tuple[float, float] | None:
        return getattr(self._env.unwrapped, "render_span", None)

    def reset(self, slots: Sequence[int], specs: Sequence[EpisodeSpec], keys: Sequence[str]) -> ShardResult:
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
        result = ShardResult.of_reset(*self._observe(observation, keys, slots))
        if self.description.has_instruction:
            check_instructions(result.instructions, slots)
        return result

    def _reset_env(self, seeds: list[int | None], options: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        if self.description.num_init_states and getattr(self._env.unwrapped, "randomization", None) is None:
            return self._env.reset(options=options)  # a stored state is the whole start; there is nothing to seed
        try:
            return self._env.reset(seed=seeds, options=options or None)  # type: ignore[arg-type]
        except (TypeError, gym.error.Error) as error:
            raise ValueError(
                f"{self._config.id} cannot be reset with one seed per slot ({error}): add vectorization_mode=sync to env.kwargs"
            ) from error

    def step(
        self, actions: np.ndarray, active: np.ndarray, keys: Sequence[str], film: Mapping[int, bool] = NOBODY
    ) -> ShardResult:
        if not self._started:
            raise EnvFaultError("step before the first reset")
        play = self._step_chunk if self._chunked else self._step_singly
        result = play(actions, active, keys, film)
        check_played(result, active, chunk_size=self._chunk_size)
        return result

    def _step_chunk(
        self, actions: np.ndarray, active: np.ndarray, keys: Sequence[str], film: Mapping[int, bool]
    ) -> ShardResult:
        self._film(film)
        observation, rewards, terminated, truncated, info = self._env.step(actions)
        if "num_steps" not in info:
            raise EnvFaultError(f"{self._config.id} plays chunks but does not say how many actions it played (num_steps)")
        observations, instructions = self._observe(observation, keys, np.flatnonzero(active))
        rewards = np.asarray(on_host(rewards), np.float32)
        terminated, truncated = np.asarray(on_host(terminated), bool), np.asarray(on_host(truncated), bool)
        return ShardResult(
            observations=observations,
            instructions=instructions,
            rewards=rewards,
            num_steps=np.asarray(on_host(info["num_steps"]), np.int32),
            terminated=terminated,
            truncated=truncated,
            succeeded=self._succeeded(info, rewards, terminated, active & (terminated | truncated)),
            frames={
                slot: self._frames(slot, observation, info)
                for slot, all_frames in film.items()
                if all_frames or terminated[slot] or truncated[slot]
            },
        )

    def _film(self, film: Mapping[int, bool]) -> None:
        """Ask an env that draws within a chunk for all frames of the slots that want them."""
        wanted = [slot for slot, all_frames in film.items() if all_frames]
        if wanted != self._filmed and getattr(self._env.unwrapped, "frames_key", None) == self._config.image_key:
            every = [1 if slot in wanted else None for slot in range(self._slots)]
            self._env.unwrapped.set_attr("render_every", every)  # type: ignore[attr-defined] # as Gymnasium's own have it
            self._filmed = wanted

    def _frames(self, slot: int, observation: Any, info: Mapping[str, Any]) -> np.ndarray:
        """(F, H, W, 3): all that the env shows of its last chunk; else what is seen after it."""
        if slot in self._filmed:
            upright = info["frames"][slot]
            return upright[:, :, ::-1] if self.description.mirrored_images else upright
        return self._picture(observation, slot)[None]

    def _picture(self, observation: Any, *slot: int) -> np.ndarray:
        """(H, W, 3): the main image of a slot, or of an observation of one slot alone; a copy."""
        return np.array(on_host(read_array(observation, IMAGE, image_key=self._config.image_key, tensors=True)[slot]))

    def _step_singly(
        self, actions: np.ndarray, active: np.ndarray, keys: Sequence[str], film: Mapping[int, bool]
    ) -> ShardResult:
        frames: dict[int, list[np.ndarray]] = {}
        rewards, num_steps = np.zeros(self._slots, np.float32), np.zeros(self._slots, np.int32)
        terminated, truncated = np.zeros(self._slots, bool), np.zeros(self._slots, bool)
        succeeded, ended = np.zeros(self._slots, bool), np.zeros(self._slots, bool)
        playing = active.copy()
        observation = None
        for index in range(self._chunk_size):
            if not playing.any():
                break
            if index > 0 and ended.any() and not self._whole_resets:
                self._env.reset(options={"reset_mask": ended})  # nobody's episode: see the module's docstring
            observation, step_rewards, step_terminated, step_truncated, info = self._env.step(actions[:, index])
            self._steps_played += 1
            step_rewards = np.asarray(on_host(step_rewards), np.float32)
            step_terminated, step_truncated = np.array(on_host(step_terminated), bool), np.array(on_host(step_truncated), bool)
            ended = step_terminated | step_truncated
            succeeded |= playing & self._succeeded(info, step_rewards, step_terminated, playing & ended)
            if self._limit is not None:
                step_truncated |= ~step_terminated & (self._steps_played >= self._limit)
            rewards[playing] += step_rewards[playing]
            num_steps[playing] += 1
            terminated[playing] = step_terminated[playing]
            truncated[playing] = step_truncated[playing]
            over = terminated | truncated
            for slot, all_frames in film.items():
                if playing[slot] and (all_frames or over[slot]):
                    at_end = info["final_obs"][slot] if ended[slot] and "final_obs" in info else None
                    picture = self._picture(observation, slot) if at_end is None else self._picture(at_end)
                    frames.setdefault(slot, []).append(picture)
            playing &= ~over
        if ended.any() and not self._whole_resets:
            # An env must not be stepped past an end; slots that stay free would otherwise be.
            observation, _ = self._env.reset(options={"reset_mask": ended})
        observations, instructions = self._observe(observation, keys, np.flatnonzero(playing))
        return ShardResult(
            observations=observations,
            instructions=instructions,
            rewards=rewards,
            num_steps=num_steps,
            terminated=terminated,
            truncated=truncated,
            succeeded=succeeded,
            frames={slot: np.stack(pictures) for slot, pictures in frames.items()},
        )

    def _succeeded(self, info: dict[str, Any], rewards: np.ndarray, terminated: np.ndarray, ended: np.ndarray) -> np.ndarray:
        """(N,) bool of the last step or chunk; `rewards` are its own."""
        if self._success_key is not None:
            return say_success(info, self._success_key, ended=ended)
        return terminated & (rewards > 0) & (self._config.success == "terminated")

    def _observe(
        self, observation: Any, keys: Sequence[str], playing: Sequence[int] | np.ndarray
    ) -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
        name = self._config.image_key
        arrays = {key: read_array(observation, key, image_key=name, tensors=self._tensors) for key in keys}
        check_observations(arrays, self.description.observations, num_slots=self._slots, slots=playing)
        texts = read_instruction(observation, self._config.instruction)
        if texts is None or isinstance(texts, str):
            return arrays, (texts or "",) * self._slots
        return arrays, tuple(str(text) for text in texts)

    def close(self) -> None:
        self._env.close()
