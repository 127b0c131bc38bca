"""Control modes that are not LIBERO's own, against robosuite's controllers in LIBERO's env: joint positions step by step."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import mujoco
import numpy as np
import pytest

from benchmarks.parity.stock import begin_stock, switch_cameras
from vla_envs.libero.engine_scene import LiberoEngineScene
from vla_envs.libero.scene import Scene
from vla_envs.vector.control import CONTROL_MODES

ROBOSUITE = {"osc_absolute": ("OSC_POSE", {"control_delta": False}), "joint_position": ("JOINT_POSITION", {})}
"""Control mode -> robosuite's controller, and what differs from its default configuration."""
NUM_STEPS, JOINT_TOLERANCE = 20, 1e-6
SEED = 4

pytestmark = pytest.mark.parametrize("scene_and_stock", [("libero_10", 2)], indirect=True, ids=["libero_10-2"])
"""One task: a controller knows the arm and nothing else of a scene."""


class Played(NamedTuple):
    """One episode in LIBERO under a controller of robosuite's."""

    scene: Scene
    control: str
    actions: np.ndarray
    """(T, A)."""
    states: np.ndarray
    """(T, 1 + nq + nv), after each action."""


@pytest.fixture(scope="module", params=list(ROBOSUITE))
def played(scene_and_stock: tuple[Scene, Any], request: pytest.FixtureRequest) -> Iterator[Played]:
    """LIBERO's env with another controller, which its next reset builds."""
    from robosuite import load_controller_config

    scene, stock = scene_and_stock
    name, changes = ROBOSUITE[request.param]
    usual = stock.robots[0].controller_config
    stock.robots[0].controller_config = load_controller_config(default_controller=name) | changes
    switch_cameras(stock, on=False)
    start = scene.init_states[SEED]
    begin_stock(stock, scene, start)
    limits = stock.robots[0].action_limits
    assert limits[0].shape == (CONTROL_MODES[request.param].action_dim,)
    actions = random_actions(scene, request.param, start)
    states = []
    for action in actions:
        stock.step(action)
        states.append(stock.get_sim_state())
    yield Played(scene, request.param, actions, np.array(states))
    stock.robots[0].controller_config = usual
    begin_stock(stock, scene, start)


def random_actions(scene: Scene, control: str, start: np.ndarray) -> np.ndarray:
    """(T, A): joints, now and then beyond what is clipped; or poses around the first one, in the end with the world's axes."""
    rng = np.random.default_rng(SEED)
    if control == "joint_position":
        return rng.choice([-1, 1], 8) + rng.uniform(-0.5, 0.5, (NUM_STEPS, 8))
    data = mujoco.MjData(scene.model)
    data.qpos[:] = start[1 : 1 + scene.model.nq]
    mujoco.mj_forward(scene.model, data)
    actions = rng.uniform(-1, 1, (NUM_STEPS, 7))
    for action in actions:
        action[:3] = data.site_xpos[scene.osc.grip_site] + 0.1 * action[:3]
        first, turn, both = np.empty(4), np.empty(4), np.empty(4)
        mujoco.mju_mat2Quat(first, data.site_xmat[scene.osc.grip_site])
        mujoco.mju_axisAngle2Quat(turn, action[3:6] / np.linalg.norm(action[3:6]), 0.5)
        mujoco.mju_mulQuat(both, turn, first)
        mujoco.mju_quat2Vel(action[3:6], both, 1.0)
    actions[-2:, 3:6] = 0.0
    return actions


def joints_here(played: Played, actions: np.ndarray) -> np.ndarray:
    """(T, 9): the arm's and the fingers' positions after each action, played natively."""
    scene = played.scene
    player = LiberoEngineScene(scene).new_player()
    player.begin(scene.init_states[SEED])
    states = []
    for action in actions:
        player.play(action[None], 1, CONTROL_MODES[played.control].law)
        states.append(player.get_state())
    return joints(scene, np.array(states))


def joints(scene: Scene, states: np.ndarray) -> np.ndarray:
    return states[:, 1 + np.concatenate([scene.osc.arm_qpos, scene.osc.gripper_qpos])]


def test_joints_stay_within_a_microradian_of_robosuites_at_every_step(played: Played):
    difference = np.abs(joints_here(played, played.actions) - joints(played.scene, played.states))
    assert difference.max() < JOINT_TOLERANCE, difference.max(axis=1)


def test_the_arm_has_gone_far(played: Played):
    assert np.ptp(joints(played.scene, played.states)[:, :7], axis=0).max() > 0.1


def test_the_comparison_notices_actions_that_are_a_thousandth_off(played: Played):
    difference = np.abs(
        joints_here(played, 1.001 * played.actions.clip(-1, 1)) - joints_here(played, played.actions.clip(-1, 1))
    )
    assert difference.max() > 10 * JOINT_TOLERANCE
