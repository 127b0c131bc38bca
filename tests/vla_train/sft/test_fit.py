"""Demonstrations of another world are refused, each in one line that says what differs."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from vla_train.config import PolicyConfig
from vla_train.sft.fit import require_demonstrations_of, require_readable, require_supervised
from vla_train.types import EnvDescription

ENV = EnvDescription(
    observations={},
    action_low=-np.ones(7, np.float32),
    action_high=np.ones(7, np.float32),
    suite="libero_90",
    robot_type="panda",
    actions_per_s=20.0,
)
DATA = {"fps": 20, "robot_type": "panda", "action_dim": 7, "state_dim": None, "image_keys": ("image",), "suite": "libero_90"}
HERE = Path("demonstrations")


def test_demonstrations_of_the_same_env_fit_and_what_is_not_said_is_no_difference() -> None:
    require_demonstrations_of(HERE, SimpleNamespace(**DATA), ENV)
    require_demonstrations_of(HERE, SimpleNamespace(**{**DATA, "robot_type": None, "suite": None}), ENV)
    unsaid = replace(ENV, suite=None, robot_type=None, actions_per_s=None)
    require_demonstrations_of(HERE, SimpleNamespace(**{**DATA, "fps": 10}), unsaid)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"action_dim": 8}, "holds actions of 8 numbers, the env takes 7"),
        ({"fps": 10}, "holds 10 actions per second, the env plays 20"),
        ({"robot_type": "so100"}, "holds demonstrations of the robot so100, the env has panda"),
        ({"suite": "libero_10"}, "holds demonstrations of libero_10, the env plays libero_90"),
    ],
)
def test_what_differs_is_named(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        require_demonstrations_of(HERE, SimpleNamespace(**{**DATA, **change}), ENV)


def test_a_policy_that_reads_what_demonstrations_lack_is_refused() -> None:
    require_readable(HERE, SimpleNamespace(**DATA), SimpleNamespace(observation_keys=("image", "instruction")))
    for key in ("wrist_image", "state"):
        with pytest.raises(ValueError, match=f"the policy reads '{key}', demonstrations holds image"):
            require_readable(HERE, SimpleNamespace(**DATA), SimpleNamespace(observation_keys=("image", key)))


def test_a_policy_that_cannot_be_taught_is_refused() -> None:
    with pytest.raises(ValueError, match=r"policy\.factory mine:make builds a policy without targets"):
        require_supervised(SimpleNamespace(), PolicyConfig(factory="mine:make"))
