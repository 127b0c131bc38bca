"""The loss of one micro-batch: a function of what the policy evaluated and of the batch.

Invariant: loss and statistics are sums, so those of a mini-batch are the sums over its micro-batches, however it is cut. What
has weight 0 contributes exactly 0 to everything, whatever its numbers are.

R rows (decisions), K actions per decision, T numbers per decision: a multiple of K, those of one action side by side.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol, Self

import torch
from torch import Tensor

from vla_train.config import AlgoConfig

_MAX_LOG_RATIO = 20.0
"""exp(20) = 5e8: far beyond any clip, and finite."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LossInputs:
    """The batch, as the loss needs it, on the policy's device."""

    decision: Mapping[str, Tensor]
    """(R, ...) each: what the policy gave along when it decided."""
    advantages: Tensor
    """(R,) float32."""
    weights: Tensor
    """(R, K) float32: how much each action counts; 0 where it was not played."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LossOutput:
    """A loss, and statistics to report."""

    loss: Tensor
    """Scalar with gradients: a weighted sum, not a mean, and linear in the weights."""
    count: Tensor
    """Scalar: how many numbers count; reported sums are divided by it."""
    sums: Mapping[str, Tensor] = field(default_factory=dict)
    """Scalars, reported as means over what counts."""
    first_sums: Mapping[str, Tensor] = field(default_factory=dict)
    """The same, of the first mini-batch alone: what holds before the weights have moved."""
    maxima: Mapping[str, Tensor] = field(default_factory=dict)
    """Scalars, of which the largest is reported."""

    def __add__(self, other: Self) -> Self:
        def add(name: str) -> dict[str, Tensor]:
            mine, others = getattr(self, name), getattr(other, name)
            return {key: mine[key] + others[key] for key in mine}

        return type(self)(
            loss=self.loss + other.loss,
            count=self.count + other.count,
            sums=add("sums"),
            first_sums=add("first_sums"),
            maxima={key: torch.maximum(value, other.maxima[key]) for key, value in self.maxima.items()},
        )

    def detach(self) -> Self:
        """Without gradients."""

        def plain(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
            return {key: value.detach() for key, value in tensors.items()}

        return type(self)(
            loss=self.loss.detach(),
            count=self.count.detach(),
            sums=plain(self.sums),
            first_sums=plain(self.first_sums),
            maxima=plain(self.maxima),
        )


class Loss(Protocol):
    """What `algo.loss` names."""

    def __call__(self, evaluated: Mapping[str, Tensor], inputs: LossInputs, config: AlgoConfig) -> LossOutput:
        """The loss of R >= 1 rows.

        Args:
            evaluated: What `TrainablePolicy.evaluate` returned.
            inputs: The batch.
            config: Clipping, and whatever else the algorithm is told.
        """
        ...


def spread_weights(weights: Tensor, like: Tensor) -> Tensor:
    """The actions' weights (R, K) in the shape of `like`: shared out among the numbers of each action, (R, T), or summed, (R,).

    Raises:
        ValueError: `like` has another number of rows, or T is no multiple of K.
    """
    num_rows, chunk_size = weights.shape
    if like.shape == (num_rows,):
        return weights.sum(1)
    if like.ndim != 2 or like.shape[0] != num_rows or like.shape[1] % chunk_size:
        raise ValueError(
            f"expected log-probs of shape ({num_rows},) or ({num_rows}, n * {chunk_size}), got {tuple(like.shape)}"
        )
    each = like.shape[1] // chunk_size
    return weights.repeat_interleave(each, dim=1) / each


def clipped(evaluated: Mapping[str, Tensor], inputs: LossInputs, config: AlgoConfig) -> LossOutput:
    """PPO's clipped policy gradient (arXiv 1707.06347); with clip_high > clip_low, DAPO's clip-higher (arXiv 2503.14476).

        sum of weight * -min(ratio * advantage, clip(ratio, 1 - clip_low, 1 + clip_high) * advantage)

    It reads `logprobs` of what was evaluated and of the decision, both (R, T) or (R,). There is no entropy bonus. It reports:

    * `ratio_mean`, `ratio_max`: probability ratio, new weights to sampling weights;
    * `clip_fraction_low`, `clip_fraction_high`: of numbers whose gradient a bound cut off;
    * `approx_kl`: ratio - 1 - log ratio, an unbiased, non-negative estimate of KL(old || new) in nats;
    * `entropy`: in nats, where the policy evaluates `entropies`;
    * `sampling_gap`: |log-prob in training - log-prob kept from sampling| before the first update: 0 but for rounding where the
      weights are those that sampled.
    """
    logprobs, old_logprobs = evaluated["logprobs"], inputs.decision["logprobs"]
    weights = spread_weights(inputs.weights, logprobs)
    counted = weights != 0
    advantages = inputs.advantages.view(-1, *[1] * (logprobs.ndim - 1)).expand_as(logprobs).where(counted, 0.0)
    log_ratio = (logprobs - old_logprobs).where(counted, 0.0).clamp(-_MAX_LOG_RATIO, _MAX_LOG_RATIO)
    ratio = log_ratio.exp()
    bounded = ratio.clamp(1 - config.clip_low, 1 + config.clip_high)
    loss = (weights * -torch.minimum(ratio * advantages, bounded * advantages)).sum()
    with torch.no_grad():
        sums = {
            "ratio_mean": ratio.where(counted, 0.0).sum(),
            "clip_fraction_low": (counted & (advantages < 0) & (ratio < 1 - config.clip_low)).sum().float(),
            "clip_fraction_high": (counted & (advantages > 0) & (ratio > 1 + config.clip_high)).sum().float(),
            "approx_kl": (ratio - 1 - log_ratio).sum(),
        }
        if "entropies" in evaluated:
            sums["entropy"] = evaluated["entropies"].where(counted, 0.0).sum()
        return LossOutput(
            loss=loss,
            count=counted.sum().float(),
            sums=sums,
            first_sums={"sampling_gap": log_ratio.abs().sum()},
            maxima={"ratio_max": ratio.where(counted, 0.0).max()},
        )


def cross_entropy(evaluated: Mapping[str, Tensor], inputs: LossInputs, config: AlgoConfig) -> LossOutput:
    """Cross-entropy of what was decided, in nats, each row weighted by its advantage.

        sum of weight * advantage * -logprob

    Supervised training has advantages of 1. With those of GRPO this is REINFORCE's gradient, without the ratio that accounts
    for weights that have moved since they sampled. It reports `entropy` and `token_accuracy` (how often nothing is likelier
    than what was decided), where the policy evaluates `entropies` and `likeliest`.
    """
    logprobs = evaluated["logprobs"]
    weights = spread_weights(inputs.weights, logprobs)
    counted = weights != 0
    advantages = inputs.advantages.view(-1, *[1] * (logprobs.ndim - 1))
    loss = (weights * advantages * -logprobs.where(counted, 0.0)).sum()
    with torch.no_grad():
        reported = {"entropies": "entropy", "likeliest": "token_accuracy"}
        return LossOutput(
            loss=loss,
            count=counted.sum().float(),
            sums={name: evaluated[key].float().where(counted, 0.0).sum() for key, name in reported.items() if key in evaluated},
        )
