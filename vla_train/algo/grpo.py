"""GRPO's advantage (arXiv 2402.03300, equation 3): standardised within the group."""

from torch import Tensor

from vla_train.algo.group_means import group_means

_EPSILON = 1e-6


def grpo(rewards: Tensor, group_index: Tensor) -> Tensor:
    """(r - mean) / (std + 1e-6) over each group, with the unbiased standard deviation; 0 where a group has one member.

    Args:
        rewards: (N,) one per trajectory.
        group_index: (N,) int64, the group of each.
    """
    mean, count = group_means(rewards, group_index)
    deviation = rewards - mean
    mean_square, _ = group_means(deviation.square(), group_index)
    std = (mean_square * count / (count - 1).clamp(min=1)).sqrt()
    return deviation / (std + _EPSILON)
