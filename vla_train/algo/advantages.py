"""From rewards of whole trajectories to advantages, one per trajectory: every action of it gets the same.

An estimator takes N rewards and the group of each, and returns N advantages. Groups may have different sizes, and their
members need not be adjacent.
"""

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor

from vla_train.types import Trajectory

Estimator = Callable[[Tensor, Tensor], Tensor]
"""(N,) float64 rewards and (N,) int64 group indices, 0 .. P - 1, to (N,) advantages."""

_EPSILON = 1e-6


def grpo(rewards: Tensor, group_index: Tensor) -> Tensor:
    """GRPO (arXiv 2402.03300, equation 3): (r - mean) / (std + 1e-6) over each group, with the unbiased standard deviation.

    0 where a group has one member.

    Args:
        rewards: (N,) one per trajectory.
        group_index: (N,) int64, the group of each.
    """
    mean, count = group_means(rewards, group_index)
    deviation = rewards - mean
    mean_square, _ = group_means(deviation.square(), group_index)
    std = (mean_square * count / (count - 1).clamp(min=1)).sqrt()
    return deviation / (std + _EPSILON)


def rloo(rewards: Tensor, group_index: Tensor) -> Tensor:
    """RLOO (arXiv 2402.14740): r minus the mean reward of the group's other members; 0 where there is none.

    Unbiased, and not divided by the group's spread.

    Args:
        rewards: (N,) one per trajectory.
        group_index: (N,) int64, the group of each.
    """
    mean, count = group_means(rewards, group_index)
    return (rewards - mean) * count / (count - 1).clamp(min=1)


def reinforce_plus_plus(rewards: Tensor, group_index: Tensor) -> Tensor:
    """REINFORCE++ with a group baseline (arXiv 2501.03262): r - mean of the group, over the iteration's deviation.

    A group whose members agree stays at 0: centred deviations have mean 0 over the iteration, so only the scale is shared.

    Args:
        rewards: (N,) one per trajectory.
        group_index: (N,) int64, the group of each.
    """
    if len(rewards) < 2:
        return torch.zeros_like(rewards)
    mean, _ = group_means(rewards, group_index)
    deviation = rewards - mean
    return deviation / (deviation.std() + _EPSILON)


def reinforce(rewards: Tensor, group_index: Tensor) -> Tensor:
    """REINFORCE with the iteration's mean as baseline, over the iteration's deviation; groups do not matter, nor their size.

    Args:
        rewards: (N,) one per trajectory.
        group_index: (N,) not looked at.
    """
    if len(rewards) < 2:
        return torch.zeros_like(rewards)
    deviation = rewards - rewards.mean()
    return deviation / (deviation.std() + _EPSILON)


def trajectory_reward(trajectory: Trajectory, reward: Literal["success", "return"]) -> float:
    """What an episode is worth."""
    return float(trajectory.success) if reward == "success" else trajectory.episode_return


def advantages(rewards: Sequence[float], group_ids: Sequence[int], *, estimator: Estimator) -> Tensor:
    """Advantages (N,) float32 of N trajectories, computed in float64.

    Args:
        rewards: N rewards of whole trajectories.
        group_ids: N group ids (any integers); trajectories of one group need not be adjacent.
        estimator: `grpo` or another of this file, or one of the user's.

    Raises:
        ValueError: A reward is not finite, or the estimator returns something else than N finite numbers.
    """
    values = torch.tensor(rewards, dtype=torch.float64)
    if not values.isfinite().all():
        raise ValueError(f"rewards must be finite, got {sorted(set(values[~values.isfinite()].tolist()), key=str)}")
    _, group_index = torch.tensor(group_ids, dtype=torch.int64).unique(return_inverse=True)
    result = estimator(values, group_index).float()
    if result.shape != values.shape or not result.isfinite().all():
        raise ValueError(f"the estimator must return {len(values)} finite advantages, got {tuple(result.shape)}: {result}")
    return result


def group_means(values: Tensor, group_index: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and size of each trajectory's group.

    Args:
        values: (N,) one number per trajectory.
        group_index: (N,) int64 in 0 .. P - 1: which of the P groups each belongs to.

    Returns:
        (N,) mean over the group, and (N,) number of its trajectories, in the dtype of `values`.
    """
    num_groups = int(group_index.max()) + 1 if len(group_index) else 0
    sums = torch.zeros(num_groups, dtype=values.dtype).index_add_(0, group_index, values)
    counts = torch.zeros(num_groups, dtype=values.dtype).index_add_(0, group_index, torch.ones_like(values))
    return (sums / counts.clamp(min=1))[group_index], counts[group_index]
