"""How much each token counts. All normalisation of the loss is here, so that the loss itself is a plain sum.

M trajectories of a mini-batch, R rows (decisions), K actions of A dimensions per decision, T = K * A tokens.
"""

from typing import Literal

import torch
from torch import Tensor


def played_tokens(num_steps: Tensor, *, chunk_size: int, action_dim: int) -> Tensor:
    """Which tokens chose an action that was played, up to and including the one that ended the episode.

    Args:
        num_steps: (R,) actions played of each chunk, 0 .. K.

    Returns:
        (R, T) bool.
    """
    return (torch.arange(chunk_size) < num_steps[:, None]).repeat_interleave(action_dim, dim=1)


def token_weights(num_tokens: Tensor, *, aggregation: Literal["seq-mean-token-mean", "token-mean"]) -> Tensor:
    """Weight of every played token of each trajectory; over the mini-batch they sum to 1, or are all 0 if it is empty.

    Args:
        num_tokens: (M,) played tokens of each trajectory.
        aggregation: Mean over a trajectory's tokens and then over trajectories that have any, or over all tokens at once.

    Returns:
        (M,) float64; 0 for a trajectory without tokens.
    """
    counts = num_tokens.double()
    present = counts > 0
    if aggregation == "token-mean":
        weights = torch.ones_like(counts) / counts.sum().clamp(min=1)
    else:
        weights = 1 / (counts.clamp(min=1) * present.sum().clamp(min=1))
    return weights.where(present, 0.0)
