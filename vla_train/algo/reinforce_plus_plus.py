"""REINFORCE++ with a group baseline (arXiv 2501.03262): centred within the group, scaled over the whole iteration."""

import torch
from torch import Tensor

from vla_train.algo.group_means import group_means

_EPSILON = 1e-6


def reinforce_plus_plus(rewards: Tensor, group_index: Tensor) -> Tensor:
    """(r - mean of the group), standardised over all N trajectories of the iteration (unbiased standard deviation).

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
