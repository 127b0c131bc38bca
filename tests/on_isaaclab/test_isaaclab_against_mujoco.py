"""Converted tasks on Isaac Lab beside MuJoCo in C: the same start and actions give the same episode, in every world."""

from collections.abc import Iterator

import numpy as np
import pytest
from converted import TASKS, begin, make, name_of, play, reference
from isaaclab_newton.physics import NewtonManager

from vla_envs.isaac.lab.env import IsaacLabEnv


@pytest.fixture(scope="module", params=TASKS, ids=name_of)
def task(request: pytest.FixtureRequest) -> tuple[str, int]:
    return request.param


@pytest.fixture(scope="module")
def env(task: tuple[str, int]) -> Iterator[IsaacLabEnv]:
    env = make(task, cameras=())
    yield env
    env.close()


def test_what_lies_at_rest_stays_there_in_every_world(env: IsaacLabEnv, task: tuple[str, int]):
    expected = reference(task)
    begin(env, 0)
    played = play(env, expected["rest.actions"])
    away = np.linalg.norm(played["objects"] - expected["rest.objects"][1:, None], axis=-1)
    print(f"{name_of(task)}: objects at rest within {away.max() * 1e3:.3f} mm")
    assert away.max() < 1e-3
    assert np.abs(played["state"] - expected["rest.proprioception"][1:, None]).max() < 1e-3


def test_in_every_contact_something_can_move(env: IsaacLabEnv, task: tuple[str, int]):
    """As MuJoCo has it; Newton of itself lets a robot's base touch the table that it stands in."""
    begin(env, 0)
    play(env, reference(task)["rest.actions"][:1])
    model, data = NewtonManager._solver.mj_model, NewtonManager._solver.mjw_data
    touching = data.contact.geom.numpy()[: int(data.nacon.numpy()[0])]
    assert len(touching) > 0
    can_move = model.body_dofnum[model.body_weldid[model.geom_bodyid]] > 0
    assert can_move[touching].any(axis=1).all()


def test_the_arm_moves_as_mujoco_moves_it(env: IsaacLabEnv, task: tuple[str, int]):
    expected = reference(task)
    states = expected["moving.proprioception"]
    np.testing.assert_allclose(begin(env, 1)["state"], np.tile(states[0], (env.num_envs, 1)), atol=1e-4)
    played = play(env, expected["moving.actions"])["state"]
    assert np.linalg.norm(states[1:, :3] - states[0, :3], axis=-1).max() > 0.05
    away = np.linalg.norm(played[..., :3] - states[1:, None, :3], axis=-1)
    print(f"{name_of(task)}: end effector within {away.max() * 1e3:.3f} mm over {len(played)} control steps")
    assert away.max() < 5e-3
    assert np.abs(played[..., 3:] - states[1:, None, 3:]).max() < 2e-2
