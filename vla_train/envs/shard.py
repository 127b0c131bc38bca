"""What a worker runs: several slots of one env, reset slot by slot to given episodes and stepped a chunk at a time.

Any Gymnasium env becomes one:

* a vector env of its own (`vector_entry_point`, or `vectorization_mode=` in the arguments): `VectorShard`;
* any other env: one instance per slot, `SingleEnvsShard`.

Invariant: after `reset` or `step`, `images` and `instructions` hold the current observation of every slot that is playing;
they stay valid until the next call. Whatever an env returns is checked here, before it can reach a trajectory.

N slots, K actions in a chunk, A action dimensions.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np

from vla_train.types import EnvDescription, EpisodeSpec


class EnvFaultError(RuntimeError):
    """An env returned something it must not (NaN, a wrong shape, no progress); the message says what."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardResult:
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


class EnvShard(ABC):
    """N slots of one env."""

    description: EnvDescription

    @property
    def render_span(self) -> tuple[float, float] | None:
        """When its cameras drew last: `time.perf_counter()` at begin and end; None where the env does not tell."""
        return None

    @abstractmethod
    def reset(self, slots: Sequence[int], specs: Sequence[EpisodeSpec]) -> ShardResult:
        """Start the given episodes in the given slots; the others are left as they are.

        With `description.whole_resets`, slots not named are reset too, and mean nothing.
        """

    @abstractmethod
    def step(self, actions: np.ndarray, active: np.ndarray) -> ShardResult:
        """Play one chunk.

        Args:
            actions: (N, K, A) float32.
            active: (N,) bool: slots that are playing; the others need not move.
        """

    @abstractmethod
    def close(self) -> None:
        """Free everything."""


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


def check_result(result: ShardResult, active: np.ndarray, *, image_shape: tuple[int, int, int], chunk_size: int) -> None:
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
