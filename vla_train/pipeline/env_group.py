"""What a worker runs: several slots of one env, reset slot by slot to given episodes and stepped a chunk at a time.

Any Gymnasium env becomes one:

* a vector env of its own (`vector_entry_point`, or `vectorization_mode=` in the arguments): `VectorGroup`;
* any other env: one instance per slot, `SingleEnvsGroup`.

Invariant: after `reset` or `step`, `images` and `instructions` hold the current observation of every slot that is playing;
they stay valid until the next call. Whatever an env returns is checked here, before it can reach a trajectory.

N slots, K actions in a chunk, A action dimensions.
"""

import importlib
import inspect
import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.envs.registration import EnvSpec, load_env_creator

from vla_train.config import EnvConfig
from vla_train.types import EpisodeSpec


class EnvFaultError(RuntimeError):
    """An env returned something it must not (NaN, a wrong shape, no progress); the message says what."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EnvDescription:
    """What the rollout and the policy need to know of an env group."""

    num_slots: int
    """N."""
    image_shape: tuple[int, int, int]
    """(H, W, 3)."""
    mirrored_images: bool
    """Images are mirrored left to right (an env says so by an attribute of this name): videos for people undo it."""
    action_low: np.ndarray
    """(A,) float32."""
    action_high: np.ndarray
    """(A,) float32."""
    task_ids: tuple[int, ...]
    """Tasks this env can play; (0,) for an env that has one."""
    num_init_states: dict[int, int]
    """Stored initial states of each task; empty if the env draws its own from a seed."""
    instructions: dict[int, str]
    """Instruction of each task, where the env says so before it is reset."""
    suite: str | None
    """Name of the benchmark suite, where there is one."""
    max_episode_steps: int | None
    """Time limit in env steps; None if it differs from task to task."""
    whole_resets: bool
    """Slots can only be reset all at once (an env without `reset_mask`): less dense, equally correct."""

    @property
    def action_dim(self) -> int:
        """A."""
        return len(self.action_low)

    def same_env(self, other: "EnvDescription") -> bool:
        """Whether episodes of one may be played on the other."""
        return (
            self.image_shape == other.image_shape
            and self.task_ids == other.task_ids
            and self.num_init_states == other.num_init_states
            and np.array_equal(self.action_low, other.action_low)
            and np.array_equal(self.action_high, other.action_high)
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class GroupResult:
    """State of all N slots after a command; entries of slots that are not playing mean nothing."""

    images: np.ndarray
    """(N, H, W, 3) uint8, valid until the next command."""
    instructions: tuple[str, ...]
    """N texts."""
    rewards: np.ndarray
    """(N,) float32: summed over the actions played; 0 after a reset."""
    final_rewards: np.ndarray
    """(N,) float32: of the last action played (of the whole chunk where the env does not tell)."""
    num_steps: np.ndarray
    """(N,) int32: actions played."""
    terminated: np.ndarray
    """(N,) bool."""
    truncated: np.ndarray
    """(N,) bool."""


class EnvGroup(ABC):
    """N slots of one env."""

    description: EnvDescription

    @property
    def render_span(self) -> tuple[float, float] | None:
        """When its cameras drew last: `time.perf_counter()` at begin and end; None where the env does not tell."""
        return None

    @abstractmethod
    def reset(self, slots: Sequence[int], specs: Sequence[EpisodeSpec]) -> GroupResult:
        """Start the given episodes in the given slots; the others are left as they are.

        With `description.whole_resets`, slots not named are reset too, and mean nothing.
        """

    @abstractmethod
    def step(self, actions: np.ndarray, active: np.ndarray) -> GroupResult:
        """Play one chunk.

        Args:
            actions: (N, K, A) float32.
            active: (N,) bool: slots that are playing; the others need not move.
        """

    @abstractmethod
    def close(self) -> None:
        """Free everything."""


def make_env_group(config: EnvConfig, *, chunk_size: int, seed: int) -> EnvGroup:
    """Build one env group as the config says.

    Raises:
        ValueError: The env is unknown, or cannot be used (its actions are not continuous, it has no image or instruction, no
            time limit, ...); the message says what to change.
        ImportError: The env needs a package that is not installed.
    """
    try:
        return _make_env_group(config, chunk_size=chunk_size, seed=seed)
    except ModuleNotFoundError as error:
        raise ImportError(f"{config.id}: {error}") from error
    except gym.error.DependencyNotInstalled as error:
        raise ImportError(f"{config.id}: {error}") from error
    except gym.error.Error as error:
        raise ValueError(f"{config.id}: {error}") from error
    except TypeError as error:
        if "unexpected keyword argument" not in str(error):
            raise
        raise ValueError(f"{config.id} does not take all of env.kwargs: {error}") from error


def _make_env_group(config: EnvConfig, *, chunk_size: int, seed: int) -> EnvGroup:
    from vla_train.pipeline.single_envs_group import SingleEnvsGroup
    from vla_train.pipeline.vector_group import VectorGroup

    kwargs = parse_kwargs(config.kwargs)
    module, _, name = config.id.rpartition(":")
    if module:
        importlib.import_module(module)  # registers its envs, as gym.make does; gym.spec does not
    spec = gym.spec(name)
    mode = kwargs.pop("vectorization_mode", None)
    if mode is None and (spec.vector_entry_point is None or config.image_key == "render"):
        return SingleEnvsGroup(config, kwargs=kwargs, chunk_size=chunk_size)
    if config.image_key == "render":
        raise ValueError("env.image_key=render makes one env per slot: leave vectorization_mode out of env.kwargs")
    if mode in (None, "vector_entry_point"):
        accepted = vector_arguments(spec)
        offered = {"chunk_size": chunk_size, "autoreset_mode": gym.vector.AutoresetMode.DISABLED}
        if config.max_episode_steps is not None:
            offered["max_episode_steps"] = config.max_episode_steps
        kwargs = {**{name: value for name, value in offered.items() if name in accepted}, **kwargs}
        env = gym.make_vec(config.id, num_envs=config.envs_per_group, vectorization_mode="vector_entry_point", **kwargs)
    else:
        vector_kwargs: dict[str, Any] = {"autoreset_mode": gym.vector.AutoresetMode.DISABLED}
        if mode == "async":
            vector_kwargs["shared_memory"] = False  # with it, Gymnasium reads texts once, before the first reset
        if config.max_episode_steps is not None:
            kwargs["max_episode_steps"] = config.max_episode_steps
        env = gym.make_vec(
            config.id, num_envs=config.envs_per_group, vectorization_mode=mode, vector_kwargs=vector_kwargs, **kwargs
        )
    return VectorGroup(env, config=config, chunk_size=chunk_size, seed=seed)


def parse_kwargs(kwargs: Mapping[str, str]) -> dict[str, Any]:
    """Each value as JSON where it is JSON, else as the text it is."""

    def parse(text: str) -> Any:
        try:
            return json.loads(text)
        except json.JSONDecodeError:
            return text

    return {name: parse(value) for name, value in kwargs.items()}


def vector_arguments(spec: EnvSpec) -> frozenset[str]:
    """Names of the arguments that an env's own vectorisation takes."""
    entry_point = spec.vector_entry_point
    creator = load_env_creator(entry_point) if isinstance(entry_point, str) else entry_point
    assert creator is not None
    return frozenset(inspect.signature(creator).parameters)


def action_bounds(space: gym.Space[Any], env_id: str) -> tuple[np.ndarray, np.ndarray]:
    """Lower and upper bound (A,) of one action.

    Raises:
        ValueError: Actions are not a bounded vector of numbers.
    """
    if not isinstance(space, gym.spaces.Box) or len(space.shape) != 1:
        raise ValueError(f"{env_id}: actions must be a vector of continuous numbers (Box of shape (A,)), got {space}")
    if not space.is_bounded():
        raise ValueError(f"{env_id}: actions must be bounded on both sides, got {space}")
    return space.low.astype(np.float32), space.high.astype(np.float32)


def check_instructions(instructions: Sequence[str], slots: Sequence[int]) -> None:
    """Refuse an episode that begins without saying what to do.

    Raises:
        EnvFaultError: The instruction of one of `slots` is blank.
    """
    for slot in slots:
        if not instructions[slot].strip():
            raise EnvFaultError(
                f"the instruction of slot {slot} is blank (Gymnasium's AsyncVectorEnv blanks all texts, unless it is made with "
                "shared_memory=False)"
            )


def check_result(result: GroupResult, active: np.ndarray, *, image_shape: tuple[int, int, int], chunk_size: int) -> None:
    """Refuse what an env must not return for the slots that are playing.

    Raises:
        EnvFaultError: Wrong shape or type of an image, a reward that is not a number, a chunk in which nothing was played.
    """
    if result.images.shape != (len(active), *image_shape) or result.images.dtype != np.uint8:
        raise EnvFaultError(
            f"images must be uint8 of shape {(len(active), *image_shape)}, got {result.images.dtype} {result.images.shape}"
        )
    for name in ("rewards", "final_rewards", "num_steps", "terminated", "truncated"):
        if getattr(result, name).shape != active.shape:
            raise EnvFaultError(f"{name} must have shape {active.shape}, got {getattr(result, name).shape}")
    if len(result.instructions) != len(active):
        raise EnvFaultError(f"{len(active)} instructions expected, got {len(result.instructions)}")
    if not np.isfinite(result.rewards[active]).all():
        slot = int(np.flatnonzero(active & ~np.isfinite(result.rewards))[0])
        raise EnvFaultError(f"the reward of slot {slot} is {result.rewards[slot]}")
    played = result.num_steps[active]
    if ((played < 1) | (played > chunk_size)).any():
        raise EnvFaultError(f"a playing slot must play 1 to {chunk_size} actions per chunk, got {played.tolist()}")
