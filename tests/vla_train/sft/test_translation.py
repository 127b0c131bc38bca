"""Datasets of others become the env's own: gripper and orientation are found out, or taken from the user."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from reach_demonstrations import sft_config

from vla_train.config import EnvConfig
from vla_train.demonstrations.description import DemonstratedEpisode
from vla_train.sft import translation
from vla_train.sft.translation import as_the_env_has_them
from vla_train.types import ArraySpec, EnvDescription

ENV = EnvDescription(
    observations={"image": ArraySpec((32, 32, 3), "uint8")},
    action_low=-np.ones(2, np.float32),
    action_high=np.ones(2, np.float32),
    mirrored_images=True,
)
STEPS = 40


class Foreign:
    """Two episodes whose gripper is stored 1 open, 0 close, and whose pictures are rotated by 180 degrees."""

    image_keys = ("image",)
    mirrored_images: bool | None = None
    actions_as_played = False
    episodes = tuple(DemonstratedEpisode(index=index, task="go", length=STEPS) for index in range(2))

    def actions(self, episode: int) -> np.ndarray:
        opened = (np.arange(STEPS) // 10 + episode) % 2
        return np.stack([np.zeros(STEPS), opened], axis=1).astype(np.float32)

    def states(self, episode: int) -> np.ndarray:
        apart = np.convolve(self.actions(episode)[:, 1], np.ones(4) / 4)[:STEPS] * 0.04
        return np.stack([apart, -apart], axis=1).astype(np.float32)

    def images(self, episode: int, key: str, steps) -> np.ndarray:
        return np.stack([picture()[::-1, ::-1]] * len(steps))


def picture() -> np.ndarray:
    """As the env has it: bright at the top left, green at the bottom."""
    image = np.zeros((32, 32, 3), np.uint8)
    image[:10, :10] = 255
    image[24:, :, 1] = 200
    return image


@pytest.fixture(autouse=True)
def _starts_of_the_env(monkeypatch: pytest.MonkeyPatch) -> None:
    shard = SimpleNamespace(
        reset=lambda slots, specs, keys: SimpleNamespace(observations={"image": picture()[None]}), close=lambda: None
    )
    monkeypatch.setattr(translation, "make_env_shard", lambda config, chunk_size: shard)


def make_config(**changes):
    return replace(sft_config(Path("data"), Path("unused"), Path("unused")), env=EnvConfig(id="Some-v0"), **changes)


def test_gripper_and_orientation_are_found_out() -> None:
    translated = as_the_env_has_them(Foreign(), make_config(), ENV)  # type: ignore[arg-type]
    np.testing.assert_array_equal(translated.actions(0)[:, 1], np.where(Foreign().actions(0)[:, 1] > 0.5, -1, 1))
    np.testing.assert_array_equal(translated.images(0, "image", [3])[0], picture())
    assert translated.states(1) is not None


def test_what_the_user_says_goes_before_what_the_data_say() -> None:
    config = make_config(gripper="zero-one", orientation="mirrored")
    translated = as_the_env_has_them(Foreign(), config, ENV)  # type: ignore[arg-type]
    np.testing.assert_array_equal(translated.actions(0)[:, 1], 2 * Foreign().actions(0)[:, 1] - 1)
    np.testing.assert_array_equal(translated.images(0, "image", [3])[0], picture()[::-1])


def test_the_projects_own_data_are_taken_as_they_are() -> None:
    own = Foreign()
    own.mirrored_images, own.actions_as_played = True, True
    assert as_the_env_has_them(own, make_config(), ENV) is own  # type: ignore[arg-type]


def test_what_the_projects_own_data_say_is_not_looked_for() -> None:
    own = Foreign()
    own.mirrored_images, own.actions_as_played = False, True  # of an env that mirrors nothing
    translated = as_the_env_has_them(own, make_config(), ENV)  # type: ignore[arg-type]
    np.testing.assert_array_equal(translated.actions(0), own.actions(0))
    np.testing.assert_array_equal(translated.images(0, "image", [3])[0], picture()[::-1])


def test_what_cannot_be_told_is_an_error() -> None:
    blind = Foreign()
    blind.states = lambda episode: None  # type: ignore[method-assign,assignment,return-value]
    with pytest.raises(ValueError, match="without states it cannot be told which action closes the gripper"):
        as_the_env_has_them(blind, make_config(), ENV)  # type: ignore[arg-type]
