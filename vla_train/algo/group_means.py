"""Means within groups of a flat list of trajectories; groups may have different sizes and stand in any order."""

import torch
from torch import Tensor


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
