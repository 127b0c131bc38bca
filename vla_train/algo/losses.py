"""The clipped policy-gradient loss of one micro-batch (PPO's, arXiv 1707.06347; clip-higher from DAPO, arXiv 2503.14476).

Invariant: loss and statistics are sums over tokens, so those of a mini-batch are the sums over its micro-batches, however it
is cut. A token of weight 0 contributes exactly 0 to everything, whatever its numbers are. R rows, T tokens.
"""

from dataclasses import dataclass, fields
from typing import Self

import torch
from torch import Tensor

_MAX_LOG_RATIO = 20.0
"""exp(20) = 5e8: far beyond any clip, and finite."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenSums:
    """Statistics of the tokens that count, as scalars on the loss's device, without gradients."""

    tokens: Tensor
    """How many."""
    loss: Tensor
    """Weighted sum: over a mini-batch, the loss."""
    ratio: Tensor
    """Sum of the probability ratios, new to old."""
    ratio_max: Tensor
    """The largest."""
    clipped_low: Tensor
    """How many had their gradient cut by the lower bound."""
    clipped_high: Tensor
    """How many had their gradient cut by the upper bound."""
    kl: Tensor
    """Sum of ratio - 1 - log ratio: an unbiased, non-negative estimate of KL(old || new)."""
    log_ratio_abs: Tensor
    """Sum of |log ratio|: before the first update, how far training and sampling disagree about the same weights."""
    entropy: Tensor
    """Sum of the entropies in nats."""

    def __add__(self, other: Self) -> Self:
        return type(self)(
            **{
                field.name: torch.maximum(getattr(self, field.name), getattr(other, field.name))
                if field.name == "ratio_max"
                else getattr(self, field.name) + getattr(other, field.name)
                for field in fields(self)
            }
        )


def clipped_policy_loss(
    logprobs: Tensor,
    *,
    old_logprobs: Tensor,
    advantages: Tensor,
    weights: Tensor,
    entropies: Tensor,
    clip_low: float,
    clip_high: float,
) -> tuple[Tensor, TokenSums]:
    """sum of weight * -min(ratio * advantage, clip(ratio, 1 - clip_low, 1 + clip_high) * advantage).

    Args:
        logprobs: (R, T) under the weights in training, with gradients.
        old_logprobs: (R, T) kept from sampling.
        advantages: (R, T).
        weights: (R, T), from `algo.weights`.
        entropies: (R, T) in nats; for the statistics only, there is no entropy bonus.

    Returns:
        The scalar loss, and statistics.
    """
    counted = weights != 0
    log_ratio = (logprobs - old_logprobs).where(counted, 0.0).clamp(-_MAX_LOG_RATIO, _MAX_LOG_RATIO)
    advantages = advantages.where(counted, 0.0)
    ratio = log_ratio.exp()
    clipped = ratio.clamp(1 - clip_low, 1 + clip_high)
    loss = (weights * -torch.minimum(ratio * advantages, clipped * advantages)).sum()
    with torch.no_grad():
        sums = TokenSums(
            tokens=counted.sum().float(),
            loss=loss.detach(),
            ratio=ratio.where(counted, 0.0).sum(),
            ratio_max=ratio.where(counted, 0.0).max(),
            clipped_low=(counted & (advantages < 0) & (ratio < 1 - clip_low)).sum().float(),
            clipped_high=(counted & (advantages > 0) & (ratio > 1 + clip_high)).sum().float(),
            kl=(ratio - 1 - log_ratio).sum(),
            log_ratio_abs=log_ratio.abs().sum(),
            entropy=entropies.detach().where(counted, 0.0).sum(),
        )
    return loss, sums
