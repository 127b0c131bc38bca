"""Environments of converted tasks come and go, made by us and by Isaac Lab itself."""

import gymnasium as gym
import numpy as np
import pytest
from converted import FOLDER, TASKS, make
from isaaclab_tasks.utils import parse_env_cfg

from vla_envs.errors import NotResetError
from vla_envs.isaac.lab.tasks import register_tasks


def test_a_closed_env_says_so_and_lets_another_be_made():
    first = make(TASKS[0], cameras=())
    with pytest.raises(NotResetError, match="step: slot 0 was never reset"):
        first.step(np.zeros((2, 7)))
    first.close()
    with pytest.raises(NotResetError, match="this env is closed"):
        first.reset()
    make(TASKS[0], cameras=()).close()


def test_converted_tasks_are_registered_with_isaac_lab():
    names = register_tasks(FOLDER)
    assert len(names) == len(TASKS)
    env = gym.make(names[0], cfg=parse_env_cfg(names[0], device="cpu", num_envs=2))
    observation, _ = env.reset()
    assert observation["policy"]["image"].shape == (2, 256, 256, 3)
    env.close()
