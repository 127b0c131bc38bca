"""How much each action counts. All normalisation of the loss is here, so that the loss itself is a plain sum.

M trajectories of a mini-batch, R rows (decisions), K actions per decision. The tokens of one action share its weight equally,
so means over actions are means over tokens.
"""

from typing import Literal

import torch
from torch import Tensor


def played_actions(num_steps: Tensor, *, chunk_size: int) -> Tensor:
    """Which actions of each chunk were played, up to and including the one that ended the episode.

    Args:
        num_steps: (R,) actions played of each chunk, 0 .. K.

    Returns:
        (R, K) bool.
    """
    return torch.arange(chunk_size) < num_steps[:, None]


def action_weights(num_actions: Tensor, *, aggregation: Literal["seq-mean-token-mean", "token-mean"]) -> Tensor:
    """Weight of every played action of each trajectory; over the mini-batch they sum to 1, or are all 0 if it is empty.

    Args:
        num_actions: (M,) actions played of each trajectory.
        aggregation: Mean over a trajectory's actions and then over trajectories that have any, or over all actions at once.

    Returns:
        (M,) float64; 0 for a trajectory without actions.
    """
    counts = num_actions.double()
    present = counts > 0
    if aggregation == "token-mean":
        weights = torch.ones_like(counts) / counts.sum().clamp(min=1)
    else:
        weights = 1 / (counts.clamp(min=1) * present.sum().clamp(min=1))
    return weights.where(present, 0.0)
