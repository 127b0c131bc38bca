"""From rewards of whole trajectories to advantages, one per trajectory: every token of it gets the same."""

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor

from vla_train.algo.grpo import grpo
from vla_train.algo.reinforce_plus_plus import reinforce_plus_plus
from vla_train.algo.rloo import rloo
from vla_train.types import Trajectory

ESTIMATORS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "grpo": grpo,
    "rloo": rloo,
    "reinforce++": reinforce_plus_plus,
}


def trajectory_reward(trajectory: Trajectory, reward: Literal["success", "return"]) -> float:
    """What is compared within a group."""
    return float(trajectory.success) if reward == "success" else trajectory.episode_return


def advantages(rewards: Sequence[float], group_ids: Sequence[int], *, estimator: str) -> Tensor:
    """Advantages (N,) float32 of N trajectories, computed in float64.

    Args:
        rewards: N rewards of whole trajectories.
        group_ids: N group ids (any integers); trajectories of one group need not be adjacent.
        estimator: A key of `ESTIMATORS`.

    Raises:
        ValueError: A reward is not finite.
    """
    values = torch.tensor(rewards, dtype=torch.float64)
    if not values.isfinite().all():
        raise ValueError(f"rewards must be finite, got {sorted(set(values[~values.isfinite()].tolist()), key=str)}")
    _, group_index = torch.tensor(group_ids, dtype=torch.int64).unique(return_inverse=True)
    return ESTIMATORS[estimator](values, group_index).float()
