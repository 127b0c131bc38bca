"""REINFORCE with a leave-one-out baseline (RLOO, arXiv 2402.14740): unbiased, and not divided by the group's spread."""

from torch import Tensor

from vla_train.algo.group_means import group_means


def rloo(rewards: Tensor, group_index: Tensor) -> Tensor:
    """r minus the mean reward of the group's other members; 0 where there is none.

    Args:
        rewards: (N,) one per trajectory.
        group_index: (N,) int64, the group of each.
    """
    mean, count = group_means(rewards, group_index)
    return (rewards - mean) * count / (count - 1).clamp(min=1)
