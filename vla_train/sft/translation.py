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
        gripper: How it stores the last dimension of an action.
        orientation: Which way round its pictures are.
    """

    def __init__(self, dataset: DemonstrationDataset, *, gripper: Gripper, orientation: Orientation) -> None:
        self.episodes = dataset.episodes
        self._dataset = dataset
        self._gripper = gripper
        self._orientation = orientation

    def actions(self, episode: int) -> np.ndarray:
        """(T, A) float32 as the env takes them."""
        actions = self._dataset.actions(episode).copy()
        actions[:, -1] = self._gripper.to_env(actions[:, -1])
        return actions

    def states(self, episode: int) -> np.ndarray | None:
        """(T, D) float32 as they are stored."""
        return self._dataset.states(episode)

    def images(self, episode: int, key: str, steps: Sequence[int] | np.ndarray) -> np.ndarray:
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
    own = dataset.mirrored_images is not None and dataset.mirrored_images == env.mirrored_images
    if own and (config.gripper, config.orientation) == ("auto", "auto"):
        return dataset
    looked_at = range(0, len(dataset.episodes), -(-len(dataset.episodes) // _LOOKED_AT))
    if config.gripper != "auto":
        gripper = GRIPPERS[config.gripper]
    elif own:
        gripper = GRIPPERS["env"]
    else:
        states = [dataset.states(index) for index in looked_at]
        known = [state for state in states if state is not None]
        gripper = find_gripper([dataset.actions(index) for index in looked_at], known or None)
    orientation: Orientation
    if config.orientation != "auto":
        orientation = config.orientation
    elif own or IMAGE not in dataset.image_keys:
        orientation = "as-is"
    else:
        frames = np.concatenate([dataset.images(index, IMAGE, [0]) for index in looked_at])
        orientation = find_orientation(frames, _starts(config.env, env))
    _log.info("demonstrations in %s: gripper %s; pictures %s", config.data, gripper, orientation)
    return TranslatedDemonstrations(dataset, gripper=gripper, orientation=orientation)


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
