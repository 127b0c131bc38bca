"""Trajectories and groups of which nothing matters but how they ended."""

from collections.abc import Sequence

import numpy as np

from vla_train.types import EpisodeSpec, Group, Trajectory


def make_trajectory(*, success: bool, rewards: Sequence[float] = (0.0,)) -> Trajectory:
    """One decision of one action of one dimension per reward."""
    length = len(rewards)
    return Trajectory(
        spec=EpisodeSpec(group_id=0, sample_id=0, task_id=0, init_state_id=-1, seed=0),
        instruction="reach",
        observations={"image": np.zeros((length, 2, 2, 3), np.uint8)},
        decisions={"token_ids": np.zeros((length, 1), np.int32), "logprobs": np.zeros((length, 1), np.float32)},
        num_steps=np.ones(length, np.int32),
        rewards=np.array(rewards, np.float32),
        policy_versions=np.zeros(length, np.int32),
        success=success,
        truncated=not success,
    )


def make_group(*, successes: int, size: int) -> Group:
    success, failure = make_trajectory(success=True), make_trajectory(success=False)
    return Group(group_id=0, trajectories=(success,) * successes + (failure,) * (size - successes))


def make_group_of_returns(*returns: float) -> Group:
    trajectories = (make_trajectory(success=False, rewards=(value,)) for value in returns)
    return Group(group_id=0, trajectories=tuple(trajectories))
