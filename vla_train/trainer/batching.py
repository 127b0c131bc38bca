"""From trajectories to mini-batches of rows: which trajectories, in which order, with which advantage and weight.

Invariant: the mini-batches of an iteration are a function of its trajectories, the seed and the iteration; not of the order
in which groups arrive, nor of how many ranks share them.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from vla_train.algo.advantages import trajectory_reward
from vla_train.algo.weights import played_actions
from vla_train.types import Arrays, ArraySpec, Group, TrainBatch, Trajectory

_SHUFFLE_STREAM = 3
"""Keeps the shuffle's random numbers apart from others that are drawn from the run's seed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrajectorySummary:
    """What the plan of an iteration needs to know of a trajectory; its arrays stay where they are."""

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
    observation_specs: Mapping[str, ArraySpec]
    """Of one decision."""
    decision_specs: Mapping[str, ArraySpec]
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
            observation_specs=_specs(trajectory.observations),
            decision_specs=_specs(trajectory.decisions),
            owner=owner,
        )
        for group in groups
        for trajectory in group.trajectories
    ]


def _specs(arrays: Arrays) -> dict[str, ArraySpec]:
    return {name: ArraySpec(array.shape[1:], array.dtype.name) for name, array in arrays.items()}


def no_rows(summary: TrajectorySummary, *, chunk_size: int) -> TrainBatch:
    """A batch without rows, its arrays like those of the trajectory."""

    def empty(specs: Mapping[str, ArraySpec]) -> dict[str, np.ndarray]:
        return {name: np.empty((0, *spec.shape), spec.dtype) for name, spec in specs.items()}

    return TrainBatch(
        observations=empty(summary.observation_specs),
        instructions=(),
        decisions=empty(summary.decision_specs),
        advantages=np.empty(0, np.float32),
        weights=np.empty((0, chunk_size), np.float32),
    )


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


def make_rows(trajectories: Sequence[Trajectory], advantages: Tensor, weights: Tensor, *, chunk_size: int) -> TrainBatch:
    """The decisions of M >= 1 trajectories, one after another.

    Args:
        trajectories: M of them, with arrays of the same names and shapes.
        advantages: (M,) one per trajectory.
        weights: (M,) of each played action of a trajectory.
        chunk_size: K.

    Raises:
        ValueError: A trajectory's arrays differ in shape from others, do not belong to its decisions, or are not finite.
    """
    for trajectory in trajectories:
        _check(trajectory, like=trajectories[0], chunk_size=chunk_size)
    lengths = torch.tensor([len(trajectory) for trajectory in trajectories])
    num_steps = torch.from_numpy(np.concatenate([trajectory.num_steps for trajectory in trajectories]))
    played = played_actions(num_steps, chunk_size=chunk_size)
    return TrainBatch(
        observations=_concatenate([trajectory.observations for trajectory in trajectories]),
        instructions=tuple(trajectory.instruction for trajectory in trajectories for _ in range(len(trajectory))),
        decisions=_concatenate([trajectory.decisions for trajectory in trajectories]),
        advantages=advantages.repeat_interleave(lengths).float().numpy(),
        weights=(weights.repeat_interleave(lengths)[:, None] * played).float().numpy(),
    )


def _check(trajectory: Trajectory, *, like: Trajectory, chunk_size: int) -> None:
    if (trajectory.num_steps > chunk_size).any():
        raise ValueError(f"{trajectory.spec}: chunks of {trajectory.num_steps.max()} actions do not fit chunks of {chunk_size}")
    for mapping in ("observations", "decisions"):
        mine, others = getattr(trajectory, mapping), getattr(like, mapping)
        if mine.keys() != others.keys():
            raise ValueError(f"{trajectory.spec}: {mapping} {', '.join(mine)} beside {', '.join(others)}")
        for name, array in mine.items():
            if len(array) != len(trajectory):
                raise ValueError(f"{trajectory.spec}: {len(array)} rows of {name} do not fit {len(trajectory)} decisions")
            if array.shape[1:] != others[name].shape[1:]:
                raise ValueError(f"{trajectory.spec}: {name} of shape {array.shape[1:]} beside {others[name].shape[1:]}")
            if mapping == "decisions" and array.dtype.kind == "f" and not np.isfinite(array).all():
                raise ValueError(f"{trajectory.spec}: the {name} kept from sampling are not finite")


def _concatenate(parts: Sequence[Arrays]) -> dict[str, np.ndarray]:
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
