"""From trajectories to mini-batches of rows: which trajectories, in which order, with which advantage and weight.

Invariant: the mini-batches of an iteration are a function of its trajectories, the seed and the iteration; not of the order
in which groups arrive, nor of how many ranks share them.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from vla_train.algo.advantages import trajectory_reward
from vla_train.algo.weights import played_tokens
from vla_train.types import Group, TrainBatch, Trajectory

_SHUFFLE_STREAM = 3
"""Keeps the shuffle's random numbers apart from others that are drawn from the run's seed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrajectorySummary:
    """What the plan of an iteration needs to know of a trajectory; its images stay where they are."""

    group_id: int
    sample_id: int
    instruction: str
    num_rows: int
    """S decisions."""
    num_actions: int
    """Actions played."""
    reward: float
    versions: tuple[int, int]
    """Oldest and newest policy version that played it."""
    image_shape: tuple[int, ...]
    """(H, W, 3)."""
    owner: int
    """The rank that holds it."""


def summarise(groups: Iterable[Group], *, reward: Literal["success", "return"], owner: int) -> list[TrajectorySummary]:
    """Summaries of all trajectories, in the groups' order."""
    return [
        TrajectorySummary(
            group_id=trajectory.spec.group_id,
            sample_id=trajectory.spec.sample_id,
            instruction=trajectory.instruction,
            num_rows=len(trajectory),
            num_actions=trajectory.length,
            reward=trajectory_reward(trajectory, reward),
            versions=(int(trajectory.policy_versions.min()), int(trajectory.policy_versions.max())),
            image_shape=trajectory.images.shape[1:],
            owner=owner,
        )
        for group in groups
        for trajectory in group.trajectories
    ]


def plan_minibatches(num_trajectories: int, *, minibatch_trajectories: int, key: Sequence[int]) -> list[np.ndarray]:
    """Shuffle trajectories into mini-batches as equal in size as can be, none larger than asked for.

    Args:
        num_trajectories: N.
        minibatch_trajectories: The most of one mini-batch.
        key: Seed, iteration and epoch: the shuffle depends on nothing else.

    Returns:
        Index arrays that hold each of 0 .. N - 1 once.
    """
    if num_trajectories == 0:
        return []
    order = np.random.default_rng([*key, _SHUFFLE_STREAM]).permutation(num_trajectories)
    return np.array_split(order, -(-num_trajectories // minibatch_trajectories))


def make_rows(
    trajectories: Sequence[Trajectory], advantages: Tensor, weights: Tensor, *, chunk_size: int, action_dim: int
) -> TrainBatch:
    """The decisions of M >= 1 trajectories, one after another.

    Args:
        trajectories: M of them, with images of one size.
        advantages: (M,) one per trajectory.
        weights: (M,) of each played token of a trajectory.
        chunk_size: K.
        action_dim: A.

    Raises:
        ValueError: A trajectory's tokens do not fit K and A, its images differ in size from others, or its log-probs are
            not finite.
    """
    num_tokens = chunk_size * action_dim
    for trajectory in trajectories:
        if trajectory.token_ids.shape != (len(trajectory), num_tokens):
            raise ValueError(
                f"{trajectory.spec}: {trajectory.token_ids.shape} tokens do not fit {len(trajectory)} decisions of "
                f"{chunk_size} actions in {action_dim} dimensions"
            )
        if trajectory.images.shape[1:] != trajectories[0].images.shape[1:]:
            expected = trajectories[0].images.shape[1:]
            raise ValueError(f"{trajectory.spec}: images of {trajectory.images.shape[1:]} beside images of {expected}")
        if not np.isfinite(trajectory.logprobs).all():
            raise ValueError(f"{trajectory.spec}: the log-probs kept from sampling are not finite")
    lengths = torch.tensor([len(trajectory) for trajectory in trajectories])
    num_steps = torch.from_numpy(np.concatenate([trajectory.num_steps for trajectory in trajectories]))
    played = played_tokens(num_steps, chunk_size=chunk_size, action_dim=action_dim)
    token_weights = weights.repeat_interleave(lengths)[:, None] * played
    token_advantages = advantages.repeat_interleave(lengths)[:, None].expand(-1, num_tokens)
    return TrainBatch(
        images=np.concatenate([trajectory.images for trajectory in trajectories]),
        instructions=tuple(trajectory.instruction for trajectory in trajectories for _ in range(len(trajectory))),
        token_ids=np.concatenate([trajectory.token_ids for trajectory in trajectories]),
        old_logprobs=np.concatenate([trajectory.logprobs for trajectory in trajectories]),
        advantages=token_advantages.float().numpy(),
        weights=token_weights.float().numpy(),
        policy_versions=np.concatenate([trajectory.policy_versions for trajectory in trajectories]),
    )


def select_rows(batch: TrainBatch, rows: np.ndarray | slice) -> TrainBatch:
    """Some rows of a batch, in the order given."""
    chosen = np.arange(len(batch))[rows]
    arrays = ("images", "token_ids", "old_logprobs", "advantages", "weights", "policy_versions")
    return replace(
        batch,
        instructions=tuple(batch.instructions[row] for row in chosen),
        **{name: getattr(batch, name)[rows] for name in arrays},
    )
