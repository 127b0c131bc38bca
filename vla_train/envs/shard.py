"""What a worker runs: several slots of one env, reset slot by slot to given episodes and stepped a chunk at a time.

Invariant: after `reset` or `step`, `observations` and `instructions` hold the current observation of every slot that is
playing; they stay valid until the next call. Whatever an env returns is checked here, before it can reach a trajectory.

N slots, K actions in a chunk, A action dimensions.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import gymnasium as gym
import numpy as np

from vla_train.types import Arrays, ArraySpec, EnvDescription, EpisodeSpec, on_host

NOBODY: Mapping[int, bool] = MappingProxyType({})
"""No slot is filmed."""


class EnvFaultError(RuntimeError):
    """An env returned something it must not (NaN, a wrong shape, no progress); the message says what."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardResult:
    """State of all N slots after a command; entries of slots that are not playing mean nothing."""

    observations: Arrays
    """(N, ...) each: the keys that were asked for; valid until the next command. Some may be tensors on a GPU, where the shard
    was made for them."""
    instructions: tuple[str, ...]
    """N texts; empty where there are none."""
    rewards: np.ndarray
    """(N,) float32: summed over the actions played; 0 after a reset."""
    num_steps: np.ndarray
    """(N,) int32: actions played."""
    terminated: np.ndarray
    """(N,) bool."""
    truncated: np.ndarray
    """(N,) bool."""
    succeeded: np.ndarray
    """(N,) bool: the env counts it as a success, now or earlier in this chunk (see `success`)."""
    frames: Mapping[int, np.ndarray] = field(default_factory=dict)
    """By slot: (F, H, W, 3) uint8, the main image after each action played, or after the last alone where the env shows no
    others; also where the episode has ended. Of slots that were to be filmed."""
    began: float = 0.0
    """`time.perf_counter()` of this machine when the work began."""
    ended: float = 0.0
    drew: tuple[float, float] | None = None
    """When cameras drew in between, where the env tells."""

    @classmethod
    def of_reset(cls, observations: Arrays, instructions: Sequence[str]) -> "ShardResult":
        """Nothing was played yet."""
        count = len(instructions)
        return cls(
            observations=observations,
            instructions=tuple(instructions),
            rewards=np.zeros(count, np.float32),
            num_steps=np.zeros(count, np.int32),
            terminated=np.zeros(count, bool),
            truncated=np.zeros(count, bool),
            succeeded=np.zeros(count, bool),
        )


class EnvShard(ABC):
    """N slots of one env."""

    description: EnvDescription

    @property
    def render_span(self) -> tuple[float, float] | None:
        """When its cameras drew last: `time.perf_counter()` at begin and end; None where the env does not tell."""
        return None

    @abstractmethod
    def reset(self, slots: Sequence[int], specs: Sequence[EpisodeSpec], keys: Sequence[str]) -> ShardResult:
        """Start the given episodes in the given slots; the others are left as they are.

        With `description.whole_resets`, slots not named are reset too, and mean nothing.

        Args:
            keys: Of `description.observations`: what the result must hold.
        """

    @abstractmethod
    def step(
        self, actions: np.ndarray, active: np.ndarray, keys: Sequence[str], film: Mapping[int, bool] = NOBODY
    ) -> ShardResult:
        """Play one chunk.

        Args:
            actions: (N, K, A) float32.
            active: (N,) bool: slots that are playing; the others need not move.
            keys: As for `reset`.
            film: Of playing slots, whether the result must hold their `frames`; False: only where the episode ends.
        """

    @abstractmethod
    def close(self) -> None:
        """Free everything."""


def action_bounds(space: gym.Space[Any], env_id: str) -> tuple[np.ndarray, np.ndarray]:
    """Lower and upper bound (A,) of one action.

    Raises:
        ValueError: Actions are not a bounded vector of numbers.
    """
    if not isinstance(space, gym.spaces.Box) or len(space.shape) != 1 or not np.issubdtype(space.dtype, np.floating):
        raise ValueError(f"{env_id}: actions must be a vector of continuous numbers (Box of shape (A,)), got {space}")
    with np.errstate(over="ignore"):  # a bound beyond float32 is none
        low, high = space.low.astype(np.float32), space.high.astype(np.float32)
    if not np.isfinite([low, high]).all():
        raise ValueError(f"{env_id}: actions must be bounded on both sides, got {space}")
    return low, high


def check_instructions(instructions: Sequence[str], slots: Sequence[int]) -> None:
    """Refuse an episode that begins without saying what to do, where the env says it.

    Raises:
        EnvFaultError: The instruction of one of `slots` is blank.
    """
    for slot in slots:
        if not instructions[slot].strip():
            raise EnvFaultError(
                f"the instruction of slot {slot} is blank (Gymnasium's AsyncVectorEnv blanks all texts, unless it is made with "
                "shared_memory=False)"
            )


def check_observations(
    observations: Arrays, specs: Mapping[str, ArraySpec], *, num_slots: int, slots: Sequence[int] | np.ndarray
) -> None:
    """Refuse observations that are not as the env described them.

    Args:
        slots: Those that are playing.

    Raises:
        EnvFaultError: An array has another shape or type, or holds NaN or infinity for a slot that is playing.
    """
    for key, array in observations.items():
        expected, shape, dtype = (num_slots, *specs[key].shape), tuple(array.shape), str(array.dtype).removeprefix("torch.")
        if shape != expected or dtype != specs[key].dtype:
            raise EnvFaultError(f"{key} must be {specs[key].dtype} of shape {expected}, got {dtype} {shape}")
        if "float" in dtype and not np.isfinite(on_host(array[list(slots)])).all():
            raise EnvFaultError(f"{key} holds NaN or infinity")


def check_played(result: ShardResult, active: np.ndarray, *, chunk_size: int) -> None:
    """Refuse what an env must not say of a chunk that it played.

    Raises:
        EnvFaultError: A wrong shape, a reward that is not a number, or a chunk in which nothing was played.
    """
    for name in ("rewards", "num_steps", "terminated", "truncated"):
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
