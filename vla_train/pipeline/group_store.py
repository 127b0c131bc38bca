"""Unfinished iterations as plain arrays, for checkpoints: no pickled objects, so `np.savez` takes them as they are."""

from collections.abc import Iterable, Mapping

import numpy as np

from vla_train.pipeline.dynamic_sampling import OpenGroup
from vla_train.types import EpisodeSpec, Trajectory

_STEP_FIELDS = ("num_steps", "rewards", "policy_versions")
_MAPPINGS = ("observations", "decisions")
_KEEP_CODES = {None: -1, False: 0, True: 1}


def pack_groups(groups: Iterable[OpenGroup]) -> dict[str, np.ndarray]:
    """Arrays that hold the groups.

    `specs` (E, 6) int64: group, sample, task, initial state, seed, and whether the episode was played (1) or not (0);
    `keep` (E,) int8: its group's verdict (-1: none yet); and of the played ones, in this order: `length` (M,) decisions,
    `whole` (M,) whether observations and decisions are there, `instruction`, `success`, `truncated` (M,), and each per-decision
    array of `Trajectory`, concatenated; those of its mappings are named "observations/image", say.
    """
    groups = list(groups)
    specs = [spec for group in groups for spec in group.specs]
    played = [group.trajectories.get(spec.sample_id) for group in groups for spec in group.specs]
    trajectories = [trajectory for trajectory in played if trajectory is not None]
    state: dict[str, np.ndarray] = {
        "specs": np.array(
            [
                (spec.group_id, spec.sample_id, spec.task_id, spec.init_state_id, spec.seed, trajectory is not None)
                for spec, trajectory in zip(specs, played, strict=True)
            ],
            np.int64,
        ).reshape(-1, 6),
        "keep": np.array([_KEEP_CODES[group.keep] for group in groups for _ in group.specs], np.int8),
        "length": np.array([len(trajectory) for trajectory in trajectories], np.int64),
        "whole": np.array([_is_whole(trajectory) for trajectory in trajectories], bool),
        "instruction": np.array([trajectory.instruction for trajectory in trajectories], np.str_),
        "success": np.array([trajectory.success for trajectory in trajectories], bool),
        "truncated": np.array([trajectory.truncated for trajectory in trajectories], bool),
    }
    if trajectories:
        for name in _STEP_FIELDS:
            state[name] = np.concatenate([getattr(trajectory, name) for trajectory in trajectories])
    whole = [trajectory for trajectory in trajectories if _is_whole(trajectory)]
    for mapping in _MAPPINGS:
        for name in getattr(whole[0], mapping) if whole else ():
            state[f"{mapping}/{name}"] = np.concatenate([getattr(trajectory, mapping)[name] for trajectory in whole])
    return state


def unpack_groups(state: Mapping[str, np.ndarray]) -> list[OpenGroup]:
    """The groups that `pack_groups` packed."""
    ends, whole_ends = np.cumsum(state["length"]), np.cumsum(state["length"] * state["whole"])
    groups: dict[int, OpenGroup] = {}
    index = 0
    for row, keep in zip(state["specs"].tolist(), state["keep"].tolist(), strict=True):
        group_id, sample_id, task_id, init_state_id, seed, played = row
        spec = EpisodeSpec(group_id=group_id, sample_id=sample_id, task_id=task_id, init_state_id=init_state_id, seed=seed)
        group = groups.setdefault(group_id, OpenGroup(specs=(), keep=None if keep < 0 else bool(keep)))
        group.specs = (*group.specs, spec)
        if played:
            length, whole = int(state["length"][index]), bool(state["whole"][index])
            steps = slice(int(ends[index]) - length, int(ends[index]))
            whole_steps = slice(int(whole_ends[index]) - length, int(whole_ends[index]))
            group.trajectories[sample_id] = Trajectory(
                spec=spec,
                instruction=str(state["instruction"][index]),
                success=bool(state["success"][index]),
                truncated=bool(state["truncated"][index]),
                observations=_unpack(state, "observations/", whole_steps) if whole else {},
                decisions=_unpack(state, "decisions/", whole_steps) if whole else {},
                num_steps=np.array(state["num_steps"][steps]),
                rewards=np.array(state["rewards"][steps]),
                policy_versions=np.array(state["policy_versions"][steps]),
            )
            index += 1
    return list(groups.values())


def _is_whole(trajectory: Trajectory) -> bool:
    """Whether it was not stripped to its outcome (see `DynamicSampling.judge`)."""
    return bool(trajectory.observations or trajectory.decisions)


def _unpack(state: Mapping[str, np.ndarray], prefix: str, steps: slice) -> dict[str, np.ndarray]:
    return {name.removeprefix(prefix): np.array(state[name][steps]) for name in state if name.startswith(prefix)}
