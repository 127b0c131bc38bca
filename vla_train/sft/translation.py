"""Demonstrations as the env would have recorded them, whoever wrote them: the gripper's values, which way round pictures are.

Datasets of `collect` say that they are the env's own. Of any other, both are told apart by the data (`conventions`), or by the
user; the log says what was found.
"""

import logging
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from vla_train.config import EnvConfig
from vla_train.demonstrations.conventions import (
    GRIPPERS,
    Gripper,
    Orientation,
    find_gripper,
    find_orientation,
    orient,
)
from vla_train.demonstrations.dataset import DemonstrationDataset
from vla_train.envs.factory import make_env_shard
from vla_train.sft.config import SftConfig
from vla_train.types import IMAGE, EnvDescription, EpisodeSpec

_log = logging.getLogger(__name__)
_LOOKED_AT = 16
"""Episodes of a dataset, and tasks of the env, whose data are compared."""


class TranslatedDemonstrations:
    """A dataset in the env's own conventions.

    Args:
        dataset: As it is stored.
        gripper: How it stores the last dimension of an action; None: as the env takes it.
        orientation: Which way round its pictures are.
    """

    def __init__(self, dataset: DemonstrationDataset, *, gripper: Gripper | None, orientation: Orientation) -> None:
        self.episodes = dataset.episodes
        self._dataset = dataset
        self._gripper = gripper
        self._orientation = orientation

    def actions(self, episode: int) -> np.ndarray:
        """(T, A) float32 as the env takes them."""
        if self._gripper is None:
            return self._dataset.actions(episode)
        actions = self._dataset.actions(episode).copy()
        actions[:, -1] = self._gripper.to_env(actions[:, -1])
        return actions

    def states(self, episode: int) -> np.ndarray | None:
        """(T, D) float32 as they are stored."""
        return self._dataset.states(episode)

    def images(self, episode: int | np.ndarray, key: str, steps: Sequence[int] | np.ndarray) -> np.ndarray:
        """(n, H, W, 3) uint8 the way round that the env has them."""
        return orient(self._dataset.images(episode, key, steps), self._orientation)


def as_the_env_has_them(
    dataset: DemonstrationDataset, config: SftConfig, env: EnvDescription
) -> DemonstrationDataset | TranslatedDemonstrations:
    """The dataset, translated where it is not of the env's own making.

    Raises:
        ValueError: Gripper or orientation can be told neither from the data nor from what the user says (`gripper` and
            `orientation` of the config).
    """
    gripper, orientation = _gripper(dataset, config), _orientation(dataset, config, env)
    if gripper is not None or orientation != "as-is" or not dataset.actions_as_played:
        stored = "as the env takes it" if gripper is None else str(gripper)
        _log.info("demonstrations in %s: gripper %s; pictures %s", config.data, stored, orientation)
    if gripper is None and orientation == "as-is":
        return dataset
    return TranslatedDemonstrations(dataset, gripper=gripper, orientation=orientation)


def _gripper(dataset: DemonstrationDataset, config: SftConfig) -> Gripper | None:
    """How it is stored; None: as the env takes it."""
    if config.gripper != "auto":
        return None if config.gripper == "env" else GRIPPERS[config.gripper]
    if dataset.actions_as_played:
        return None
    looked_at = _looked_at(dataset)
    states = [state for state in map(dataset.states, looked_at) if state is not None]
    try:
        found = find_gripper([dataset.actions(index) for index in looked_at], states or None)
    except ValueError as error:
        raise ValueError(f"{config.data}: {error} (option gripper)") from None
    return None if found == GRIPPERS["env"] else found


def _orientation(dataset: DemonstrationDataset, config: SftConfig, env: EnvDescription) -> Orientation:
    if config.orientation != "auto":
        return config.orientation
    if IMAGE not in dataset.image_keys or IMAGE not in env.observations:  # a policy that reads it is refused
        return "as-is"
    if dataset.mirrored_images is not None:
        return "as-is" if dataset.mirrored_images == env.mirrored_images else "mirrored"
    frames = np.concatenate([dataset.images(index, IMAGE, [0]) for index in _looked_at(dataset)])
    try:
        return find_orientation(frames, _starts(config.env, env))
    except ValueError as error:
        raise ValueError(f"{config.data}: {error} (option orientation)") from None


def _looked_at(dataset: DemonstrationDataset) -> range:
    return range(0, len(dataset.episodes), -(-len(dataset.episodes) // _LOOKED_AT))


def _starts(config: EnvConfig, env: EnvDescription) -> np.ndarray:
    """(N, H, W, 3) uint8: what the env shows where episodes of its tasks start."""
    shard = make_env_shard(replace(config, num_workers=1, envs_per_worker=1), chunk_size=1)
    try:
        specs = [
            EpisodeSpec(group_id=0, sample_id=0, task_id=task_id, init_state_id=0 if env.num_init_states else -1, seed=0)
            for task_id in env.task_ids[:_LOOKED_AT]
        ]
        return np.concatenate([shard.reset([0], [spec], [IMAGE]).observations[IMAGE].copy() for spec in specs])
    finally:
        shard.close()
