"""A loss and an estimator of your own.

    PYTHONPATH=examples python -m vla_train train --algo.loss own_loss:penalised --algo.advantage own_loss:median_baseline ...

A loss reads what the policy evaluated now and what it gave along when it decided (`logprobs`, in both); see
`vla_train.algo.losses`. An estimator turns the rewards of an iteration into advantages; see `vla_train.algo.advantages`.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from vla_train import AlgoConfig, LossInputs, LossOutput, spread_weights

_PENALTY = 0.5


def penalised(evaluated: Mapping[str, Tensor], inputs: LossInputs, config: AlgoConfig) -> LossOutput:
    """-ratio * advantage + penalty * (log ratio)^2 / 2: a soft step limit instead of clipping. R rows, T numbers of each."""
    logprobs = evaluated["logprobs"]
    weights = spread_weights(inputs.weights, logprobs)  # (R, T): 0 where the action was not played
    log_ratio = logprobs - inputs.decision["logprobs"]
    losses = -log_ratio.exp() * inputs.advantages[:, None] + _PENALTY * log_ratio.square() / 2
    counted = weights != 0
    return LossOutput(
        loss=(weights * losses.where(counted, 0.0)).sum(),
        count=counted.sum().float(),
        sums={"squared_step": log_ratio.square().where(counted, 0.0).sum()},  # update/squared_step in the curves
    )


def median_baseline(rewards: Tensor, group_index: Tensor) -> Tensor:
    """Reward minus the group's median: (N,) rewards and the group of each to (N,) advantages."""
    advantages = torch.zeros_like(rewards)
    for group in group_index.unique():
        members = group_index == group
        advantages[members] = rewards[members] - rewards[members].quantile(0.5)
    return advantages


median_baseline.per_group = True  # it never compares groups: optim.accumulate_during_rollout may be used
