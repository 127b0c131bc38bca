"""What a rollout reports: while it runs, and of an iteration."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from vla_train.types import Group


@dataclass(frozen=True, kw_only=True, slots=True)
class RolloutProgress:
    """How far an iteration is."""

    kept: int
    """Groups with a signal so far."""
    target: int
    """Groups with a signal that complete the iteration."""
    consumed: int
    """Groups played so far, with or without signal."""
    episodes: int
    """Episodes finished in this call."""
    decisions: int
    """Chunks played in this call."""
    elapsed_s: float

    @property
    def decisions_per_s(self) -> float:
        return self.decisions / self.elapsed_s if self.elapsed_s > 0 else 0.0


@dataclass(frozen=True, kw_only=True, slots=True)
class RolloutStats:
    """What one `collect` did."""

    groups_kept: int
    groups_rejected: int
    """Played, but without a learning signal."""
    groups_carried_over: int
    """Finished already, and left for the next iteration."""
    episodes_in_flight: int
    """Begun, and left for the next iteration."""
    success_rate: float
    """Over all groups consumed, kept or not; 0 if there was none."""
    episodes: int
    """Finished during this call."""
    decisions: int
    """Chunks played during this call."""
    env_steps: int
    policy_batches: int
    duration_s: float
    policy_s: float
    """Time the policy worked."""
    env_s: float
    """Time the busiest worker worked."""
    overlap_efficiency: float
    """max(policy_s, env_s) / duration_s: 1 when the slower of the two never waited; NaN where nothing was played, since all
    groups had been carried over."""
    worker_restarts: int
    """Since the last iteration: in an evaluation in between, too."""
    episodes_requeued: int
    """Episodes that started again because their worker failed."""

    @property
    def decisions_per_s(self) -> float:
        """NaN where nothing was played."""
        return self.decisions / self.duration_s if self.decisions else math.nan

    @property
    def rows_per_batch(self) -> float:
        """NaN where nothing was decided."""
        return self.decisions / self.policy_batches if self.policy_batches else math.nan


def combine_stats(parts: Sequence[RolloutStats]) -> RolloutStats:
    """What several rollouts did at the same time: sums, but the longest duration, and means of what is a rate."""
    if len(parts) == 1:
        return parts[0]
    overlaps = [part.overlap_efficiency for part in parts if part.decisions]
    consumed = [part.groups_kept + part.groups_rejected for part in parts]

    def total(name: str) -> int:
        return sum(getattr(part, name) for part in parts)

    return RolloutStats(
        groups_kept=total("groups_kept"),
        groups_rejected=total("groups_rejected"),
        groups_carried_over=total("groups_carried_over"),
        episodes_in_flight=total("episodes_in_flight"),
        success_rate=float(np.average([part.success_rate for part in parts], weights=consumed)) if any(consumed) else 0.0,
        episodes=total("episodes"),
        decisions=total("decisions"),
        env_steps=total("env_steps"),
        policy_batches=total("policy_batches"),
        duration_s=max(part.duration_s for part in parts),
        policy_s=float(np.mean([part.policy_s for part in parts])),
        env_s=float(np.mean([part.env_s for part in parts])),
        overlap_efficiency=float(np.mean(overlaps)) if overlaps else math.nan,
        worker_restarts=total("worker_restarts"),
        episodes_requeued=total("episodes_requeued"),
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class RolloutResult:
    """The groups of one iteration that carry a signal, by group_id, and how it went."""

    groups: tuple[Group, ...]
    stats: RolloutStats
