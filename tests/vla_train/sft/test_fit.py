"""Demonstrations of another world are refused, each in one line that says what differs."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from vla_train.config import EnvConfig, PolicyConfig
from vla_train.demonstrations.description import DemonstratedEpisode
from vla_train.sft.fit import (
    drawing_warning,
    env_of,
    require_demonstrations_of,
    require_own_folder,
    require_readable,
    require_supervised,
)
from vla_train.types import ArraySpec, EnvDescription

ENV = EnvDescription(
    observations={},
    action_low=-np.ones(7, np.float32),
    action_high=np.ones(7, np.float32),
    suite="libero_90",
    robot_type="panda",
    actions_per_s=20.0,
)
DATA: dict[str, object] = {"fps": 20, "robot_type": "panda", "action_dim": 7, "state_dim": None, "image_keys": ("image",)}
DATA |= {"suite": "libero_90", "episodes": (DemonstratedEpisode(index=0, task="go", length=9, task_id=0),)}
HERE = Path("demonstrations")


def test_demonstrations_of_the_same_env_fit_and_what_is_not_said_is_no_difference() -> None:
    require_demonstrations_of(HERE, SimpleNamespace(**DATA), ENV, fps=None)
    require_demonstrations_of(HERE, SimpleNamespace(**{**DATA, "robot_type": None, "suite": None}), ENV, fps=None)
    unsaid = replace(ENV, suite=None, robot_type=None, actions_per_s=None)
    require_demonstrations_of(HERE, SimpleNamespace(**{**DATA, "fps": 10}), unsaid, fps=None)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"action_dim": 8}, "holds actions of 8 numbers, the env takes 7"),
        ({"fps": 10}, "holds 10 actions per second, the env plays 20"),
        ({"robot_type": "so100"}, "holds demonstrations of the robot so100, the env has panda"),
        ({"suite": "libero_10"}, "holds demonstrations of libero_10, the env plays libero_90: set env.kwargs suite=libero_10"),
        (
            {"episodes": (DemonstratedEpisode(index=0, task="go", length=9, task_id=7),)},
            r"tasks that the env does not play \(7\)",
        ),
    ],
)
def test_what_differs_is_named(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        require_demonstrations_of(HERE, SimpleNamespace(**{**DATA, **change}), ENV, fps=None)


def test_the_user_may_know_the_rate_better_than_the_data() -> None:
    require_demonstrations_of(HERE, SimpleNamespace(**{**DATA, "fps": 10}), ENV, fps=20)
    require_demonstrations_of(HERE, SimpleNamespace(**DATA), replace(ENV, actions_per_s=20.3), fps=None)


@pytest.mark.parametrize("output", ["demonstrations", "demonstrations/run", "."])
def test_a_run_is_not_written_into_its_data(output: str) -> None:
    with pytest.raises(ValueError, match="must be folders apart: choose another output"):
        require_own_folder(HERE, Path(output))
    require_own_folder(HERE, Path("demonstrations-run"))


def test_states_of_another_size_are_refused() -> None:
    env = replace(ENV, observations={"state": ArraySpec((8,), "float32")})
    policy = SimpleNamespace(observation_keys=("image", "state"))
    require_readable(HERE, SimpleNamespace(**{**DATA, "state_dim": 8}), policy, env)
    with pytest.raises(ValueError, match="holds states of 9 numbers, the env observes"):
        require_readable(HERE, SimpleNamespace(**{**DATA, "state_dim": 9}), policy, env)


def test_a_policy_that_reads_what_demonstrations_lack_is_refused() -> None:
    require_readable(HERE, SimpleNamespace(**DATA), SimpleNamespace(observation_keys=("image", "instruction")), ENV)
    for key in ("wrist_image", "state"):
        with pytest.raises(ValueError, match=f"the policy reads '{key}', demonstrations holds image"):
            require_readable(HERE, SimpleNamespace(**DATA), SimpleNamespace(observation_keys=("image", key)), ENV)


def test_the_env_is_that_of_the_data_where_nothing_is_said_of_it() -> None:
    data = SimpleNamespace(env_id="Libero-v0", env_kwargs={"suite": "libero_90"})
    assert env_of(data, EnvConfig()).kwargs == {"suite": "libero_90"}
    assert env_of(data, EnvConfig(kwargs={"suite": "libero_10"})).kwargs == {"suite": "libero_10"}
    assert env_of(data, EnvConfig(id="Isaac-v0")).kwargs == {}
    assert env_of(SimpleNamespace(env_id=None, env_kwargs={}), EnvConfig()).kwargs == {}


def test_pictures_that_were_drawn_otherwise_are_told() -> None:
    data = SimpleNamespace(env_kwargs={"suite": "libero_90", "detail": "fast", "image_size": "84"})
    same = EnvConfig(kwargs={"task_ids": "[3]", "detail": "fast", "image_size": "84"})
    assert drawing_warning(HERE, data, same) is None
    assert drawing_warning(HERE, SimpleNamespace(env_kwargs={}), same) is None
    warning = drawing_warning(HERE, data, EnvConfig(kwargs={"image_size": "84"}))
    assert warning == "evaluations may look different from demonstrations: detail fast in the data, unset in env.kwargs"


def test_a_policy_that_cannot_be_taught_is_refused() -> None:
    with pytest.raises(ValueError, match=r"policy\.factory mine:make builds a policy without targets"):
        require_supervised(SimpleNamespace(), PolicyConfig(factory="mine:make"))
