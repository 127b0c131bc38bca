"""A control that must not learn: GRPO with the rewards of each group dealt anew among its episodes.

    PYTHONPATH=examples python -m vla_train train --algo.advantage shuffled_rewards:shuffled ...

All else is as it was: which groups have a signal, how many of their episodes count as good, how large the steps are. What is
gone is the one thing that teaches: which episodes were good. Success that rises here too is not owed to the rewards.
"""

import zlib

import torch
from torch import Tensor


def shuffled(rewards: Tensor, group_index: Tensor) -> Tensor:
    """GRPO's advantages of rewards that were permuted within each group: (N,) rewards and the group of each to (N,) advantages.

    The permutations are drawn anew in each iteration and depend on its rewards alone: a resumed run draws the same, and so
    does each of several ranks.
    """
    generator = torch.Generator().manual_seed(zlib.crc32(rewards.numpy().tobytes()))
    advantages = torch.zeros_like(rewards)
    for group in group_index.unique():
        members = (group_index == group).nonzero()[:, 0]
        dealt = rewards[members[torch.randperm(len(members), generator=generator)]]
        advantages[members] = (dealt - dealt.mean()) / (dealt.std() + 1e-6) if len(members) > 1 else 0.0
    return advantages
