"""The privileged view of a slot: right whenever it is asked for, and without touching the slot."""

import mujoco
import numpy as np
import pytest
from fast_envs import BOWL_IN_DRAWER, make_envs, play, random_actions, still

from vla_envs.errors import NotResetError
from vla_envs.libero.env import LiberoEnv
from vla_envs.libero.privileged import PrivilegedView


def assert_right(view: PrivilegedView) -> None:
    """All of the view against a `mj_forward` of its own."""
    model = view.geometry.model
    data = mujoco.MjData(model)
    data.qpos[:] = view.state[1 : 1 + model.nq]
    mujoco.mj_forward(model, data)
    np.testing.assert_array_equal(view.body_positions, data.xpos)
    np.testing.assert_array_equal(view.body_rotations.reshape(-1, 9), data.xmat)
    np.testing.assert_array_equal(view.site_positions, data.site_xpos)
    np.testing.assert_array_equal(view.site_rotations.reshape(-1, 9), data.site_xmat)
    assert np.linalg.norm(view.end_effector.position) > 0.1


@pytest.fixture(scope="module")
def envs() -> LiberoEnv:
    suite, task_id = BOWL_IN_DRAWER
    return make_envs(2, suite, (task_id,))


def test_a_view_is_right_directly_after_a_reset_and_after_one_from_a_copy(envs: LiberoEnv):
    for _ in range(2):  # the second begins from the start that the first has settled
        envs.reset(seed=0, options={"init_state_id": 3})
        for slot in range(2):
            assert_right(envs.privileged(slot))


def test_a_view_is_right_after_steps_and_after_set_state(envs: LiberoEnv):
    envs.reset(seed=0)
    before = envs.get_state()
    play(envs, random_actions(envs, 5))
    assert_right(envs.privileged(1))
    envs.set_state(before)
    view = envs.privileged(1)
    assert_right(view)
    np.testing.assert_array_equal(view.state, before[1])


def test_looking_changes_nothing_that_comes(envs: LiberoEnv):
    states = []
    for look in (False, True):
        envs.reset(seed=0, options={"init_state_id": 0})
        for action in random_actions(envs, 4):
            if look:
                envs.privileged(0).box("akita_black_bowl_1")
            envs.step(action)
        states.append(envs.get_state()[0])
    np.testing.assert_array_equal(states[0], states[1])


def test_a_view_is_a_snapshot(envs: LiberoEnv):
    envs.reset(seed=0)
    view = envs.privileged(0)
    before = view.end_effector.position.copy()
    envs.step(np.ones(envs.action_space.shape))
    np.testing.assert_array_equal(view.end_effector.position, before)


def test_a_view_names_what_there_is(envs: LiberoEnv):
    envs.reset(seed=0, options={"init_state_id": 7})
    view = envs.privileged(0)
    assert (view.suite, view.task_id, view.init_state_id) == (*BOWL_IN_DRAWER, 7)
    assert view.instruction == envs.instructions[view.task_id]
    assert "akita_black_bowl_1" in view.objects
    assert {"wooden_cabinet_1", "flat_stove_1"} <= set(view.fixtures)
    assert view.name(view.objects["plate_1"]) == "plate_1"
    np.testing.assert_array_equal(view.body("plate_1").position, view.body("plate_1_main").position)
    assert view.joint("wooden_cabinet_1_top_level") == pytest.approx(0, abs=0.01)
    assert view.site("wooden_cabinet_1_top_region").position[2] > view.site("wooden_cabinet_1_bottom_region").position[2]
    assert len(view.goal.predicates) == 1


def test_boxes_are_in_the_bodys_frame_and_as_large_as_the_thing(envs: LiberoEnv):
    envs.reset(seed=0)
    view = envs.privileged(0)
    box = view.box("akita_black_bowl_1")
    assert (np.abs(box.size - [0.107, 0.107, 0.05]) < 0.01).all()
    assert (np.abs(box.centre[:2]) < 0.01).all()
    assert view.lowest("akita_black_bowl_1") == pytest.approx(0.9, abs=0.01)


def test_poses_convert_points_there_and_back_and_know_their_quaternion(envs: LiberoEnv):
    envs.reset(seed=0)
    pose = envs.privileged(0).end_effector
    points = np.random.default_rng(0).normal(size=(5, 3))
    np.testing.assert_allclose(pose.into(pose.out(points)), points, atol=1e-12)
    rotation = np.empty(9)
    mujoco.mju_quat2Mat(rotation, pose.quaternion)
    np.testing.assert_allclose(rotation.reshape(3, 3), pose.rotation, atol=1e-9)


def test_the_gripper_opens_and_closes_in_the_view(envs: LiberoEnv):
    envs.reset(seed=0)
    assert envs.privileged(0).gripper_opening > 0.07
    closing = still(envs).copy()
    closing[..., 6] = 1
    envs.step(closing)
    envs.step(closing)
    assert envs.privileged(0).gripper_speed < -0.01
    play(envs, np.broadcast_to(closing, (18, *closing.shape)))
    assert envs.privileged(0).gripper_opening < 0.01


def test_what_does_not_exist_is_refused_by_name(envs: LiberoEnv):
    envs.reset(seed=0)
    view = envs.privileged(0)
    for ask in (view.body, view.site, view.joint, view.box):
        with pytest.raises(ValueError, match="'teapot'"):
            ask("teapot")
    with pytest.raises(ValueError, match="free"):
        view.joint("plate_1_joint0")
    with pytest.raises(ValueError, match=r"slot must be in 0\.\.1, got 2"):
        envs.privileged(2)


def test_a_slot_that_was_never_reset_has_no_view():
    envs = make_envs()
    with pytest.raises(NotResetError, match="privileged"):
        envs.privileged(0)
    envs.close()
