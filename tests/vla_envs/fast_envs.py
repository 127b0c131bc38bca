"""Real LIBERO tasks made quick: simplified scenes that stay loaded, no cameras unless asked for, states close to success."""

from collections.abc import Sequence
from functools import cache
from typing import Any

import gymnasium as gym
import mujoco
import numpy as np

from vla_envs.libero.engine_scene import LiberoEngineScene
from vla_envs.libero.env import LiberoEnv
from vla_envs.libero.goals import InSite, JointPast, OnObject, OnSite
from vla_envs.libero.recent_scenes import shared_scene
from vla_envs.vector.settled import SETTLING_ACTION

STILL = SETTLING_ACTION

BOWL_ON_PLATE = ("libero_spatial", 0)
OTHER_BOWL_ON_PLATE = ("libero_spatial", 1)
BOWL_IN_DRAWER = ("libero_goal", 3)
STOVE_AND_POT = ("libero_10", 2)


@cache
def loaded_scene(suite: str, task_id: int) -> LiberoEngineScene:
    """The scene that all envs of this process share, kept for all tests."""
    return shared_scene(suite, task_id, "fast", None)


def make_envs(num_envs: int = 1, suite: str = "libero_spatial", task_ids: Sequence[int] = (0,), **arguments: Any) -> LiberoEnv:
    """A vector env at fast detail, without cameras unless some are named."""
    for task_id in task_ids:
        loaded_scene(suite, task_id)
    arguments = {"cameras": (), "image_size": 32} | arguments
    envs = gym.make_vec("Libero-v0", num_envs=num_envs, suite=suite, task_ids=task_ids, detail="fast", **arguments)
    assert isinstance(envs, LiberoEnv)
    return envs


def still(envs: LiberoEnv) -> np.ndarray:
    """Actions that only wait, of the action space's shape."""
    return np.broadcast_to(STILL, envs.action_space.shape)


def random_actions(envs: LiberoEnv, num_calls: int, seed: int = 0) -> np.ndarray:
    """(num_calls, N, ...) actions within bounds."""
    return np.random.default_rng(seed).uniform(-1, 1, (num_calls, *envs.action_space.shape)).astype(np.float32)


def play(envs: LiberoEnv, actions: np.ndarray) -> list[tuple[np.ndarray, ...]]:
    """The states of all slots after each call."""
    states = []
    for action in actions:
        envs.step(action)
        states.append(envs.get_state())
    return states


def assert_same_states(mine: Sequence[np.ndarray], theirs: Sequence[np.ndarray]) -> None:
    """Equal to the last bit."""
    for one, other in zip(mine, theirs, strict=True):
        np.testing.assert_array_equal(one, other)


def almost_done(suite: str, task_id: int, state: np.ndarray, *, drop_m: float = 0.02) -> np.ndarray:
    """`state` at rest, with joints turned as the goal wants them and objects `drop_m` above where they belong."""
    scene = loaded_scene(suite, task_id).scene
    model, data = scene.model, mujoco.MjData(scene.model)
    data.qpos[:] = state[1 : 1 + model.nq]
    for predicate in scene.goal.predicates:
        if isinstance(predicate, JointPast):
            data.qpos[list(predicate.qpos_addresses)] = predicate.threshold + 0.1
    mujoco.mj_fwdPosition(model, data)
    for predicate in scene.goal.predicates:
        if isinstance(predicate, OnObject):
            target = data.xpos[predicate.support]
        elif isinstance(predicate, OnSite | InSite):
            target = data.site_xpos[predicate.site]
        else:
            continue
        address = model.jnt_qposadr[model.body_jntadr[predicate.body]]
        data.qpos[address : address + 3] = target + np.array([0, 0, drop_m])
    return np.concatenate([state[:1], data.qpos, np.zeros(model.nv)])
