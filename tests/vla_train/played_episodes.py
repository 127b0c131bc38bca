"""Trajectories whose outcome is known, as `Rollout.play` yields them."""

from collections.abc import Callable, Iterable, Iterator

import numpy as np

from vla_train.types import EpisodeSpec, Trajectory

DECISIONS, CHUNK_SIZE, TOKENS = 6, 8, 56
INSTRUCTIONS = ('put <b>the cup</b> & the "lid" on the plate', "open the [red] drawer")


def make_specs(num_tasks: int, per_task: int) -> list[EpisodeSpec]:
    """`per_task` starts of each task, tasks interleaved."""
    return [
        EpisodeSpec(group_id=task_id, sample_id=state, task_id=task_id, init_state_id=state, seed=0)
        for state in range(per_task)
        for task_id in range(num_tasks)
    ]


def make_trajectory(spec: EpisodeSpec, *, success: bool, height: int = 64, width: int = 64) -> Trajectory:
    """An episode in which the left half of the image is red, and the right half black."""
    images = np.zeros((DECISIONS, height, width, 3), np.uint8)
    images[:, :, : width // 2, 0] = 255
    return Trajectory(
        spec=spec,
        instruction=INSTRUCTIONS[spec.task_id % len(INSTRUCTIONS)],
        observations={"image": images},
        film=np.concatenate([images, images[-1:]]),
        decisions={"token_ids": np.zeros((DECISIONS, TOKENS), np.int32), "logprobs": np.zeros((DECISIONS, TOKENS), np.float32)},
        num_steps=np.full(DECISIONS, CHUNK_SIZE, np.int32),
        rewards=np.array([0.0] * (DECISIONS - 1) + [float(success)], np.float32),
        policy_versions=np.zeros(DECISIONS, np.int32),
        success=success,
        truncated=not success,
    )


def play_with(succeeds: Callable[[EpisodeSpec], bool]) -> Callable[[Iterable[EpisodeSpec]], Iterator[Trajectory]]:
    """A `play` whose episodes succeed where `succeeds` says so."""
    return lambda specs, **_: (make_trajectory(spec, success=succeeds(spec)) for spec in specs)
