"""Demonstrations of LIBERO, by the expert that its env brings."""

import gymnasium as gym
import numpy as np
import pytest

from vla_train.config import EnvConfig
from vla_train.demonstrations.collect import Collection
from vla_train.demonstrations.config import CollectConfig
from vla_train.demonstrations.conventions import find_orientation
from vla_train.demonstrations.dataset import DemonstrationDataset

OPTIONS = {"suite": "libero_90", "image_size": 64, "detail": "fast"}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> DemonstrationDataset:
    output = tmp_path_factory.mktemp("libero") / "dataset"
    config = CollectConfig(
        output=output,
        suite="libero_90",
        task_ids=(33,),
        image_size=64,
        detail="fast",
        wrist_camera=True,
        episodes_per_task=2,
        noise=0.0,
        workers=1,
        display="none",
        env=EnvConfig(),
    )
    Collection(config).collect()
    return DemonstrationDataset(output)


def test_frames_drawn_afterwards_are_those_seen_on_the_way_to_the_pixel(dataset: DemonstrationDataset):
    env = gym.make_vec(
        "Libero-v0", num_envs=1, vectorization_mode="vector_entry_point", task_id=33, cameras=("agentview", "wrist"), **OPTIONS
    )
    for episode in dataset.episodes:
        observation, _ = env.reset(options={"task_id": 33, "init_state_id": episode.init_state_id})
        steps = range(episode.length)
        images, wrist = (dataset.images(episode.index, key, steps) for key in ("image", "wrist_image"))
        for step, action in enumerate(dataset.actions(episode.index)):
            np.testing.assert_array_equal(images[step], observation["image"][0])
            np.testing.assert_array_equal(wrist[step], observation["wrist_image"][0])
            np.testing.assert_array_equal(dataset.states(episode.index)[step], observation["state"][0])  # type: ignore[index]
            observation, _, terminated, _, _ = env.step(action[None])
        assert terminated[0]
    env.close()


def test_the_dataset_says_what_it_is(dataset: DemonstrationDataset):
    assert (dataset.suite, dataset.robot_type, dataset.fps) == ("libero_90", "panda", 20)
    assert dataset.mirrored_images is True
    assert (dataset.action_dim, dataset.state_dim, dataset.image_keys) == (7, 8, ("image", "wrist_image"))
    assert {episode.task for episode in dataset.episodes} == {"close the microwave"}


def test_the_way_round_of_its_pictures_is_told_by_those_of_the_env(dataset: DemonstrationDataset):
    env = gym.make_vec("Libero-v0", num_envs=2, vectorization_mode="vector_entry_point", task_id=33, **OPTIONS)
    reference = env.reset(options={"init_state_id": np.array([1, 2])})[0]["image"]
    first = np.concatenate([dataset.images(episode.index, "image", [0]) for episode in dataset.episodes])
    assert find_orientation(first, reference) == "as-is"
    assert find_orientation(first[:, :, ::-1], reference) == "mirrored"
    assert find_orientation(first[:, ::-1], reference) == "flipped"
    env.close()
