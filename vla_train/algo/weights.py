"""How much each action counts. All normalisation of the loss is here, so that the loss itself is a plain sum.

M trajectories of a mini-batch, R rows (decisions), K actions per decision. The tokens of one action share its weight equally,
so means over actions are means over tokens.
"""

from typing import Literal

import torch
from torch import Tensor

Aggregation = Literal["seq-mean-token-mean", "token-mean"]
"""Mean over a trajectory's actions and then over trajectories that have any, or over all actions at once."""


def played_actions(num_steps: Tensor, *, chunk_size: int) -> Tensor:
    """Which actions of each chunk were played, up to and including the one that ended the episode.

    Args:
        num_steps: (R,) actions played of each chunk, 0 .. K.

    Returns:
        (R, K) bool.
    """
    return torch.arange(chunk_size) < num_steps[:, None]


def action_weights(num_actions: Tensor, *, aggregation: Aggregation) -> Tensor:
    """Weight of every played action of each trajectory; over the mini-batch they sum to 1, or are all 0 if it is empty.

    Args:
        num_actions: (M,) actions played of each trajectory.
        aggregation: What kind of mean.

    Returns:
        (M,) float64; 0 for a trajectory without actions.
    """
    return relative_weights(num_actions, aggregation=aggregation) / total_weight(num_actions, aggregation=aggregation)


def relative_weights(num_actions: Tensor, *, aggregation: Aggregation) -> Tensor:
    """The same before they are divided by their total: those of a trajectory do not depend on the other ones."""
    counts = num_actions.double()
    weights = torch.ones_like(counts) if aggregation == "token-mean" else 1 / counts.clamp(min=1)
    return weights.where(counts > 0, 0.0)


def total_weight(num_actions: Tensor, *, aggregation: Aggregation) -> float:
    """What the relative weights of all actions sum to: how many actions, or trajectories that have any; 1 if there are none."""
    counted = num_actions if aggregation == "token-mean" else num_actions > 0
    return float(counted.sum().clamp(min=1))
