"""What an env of each control mode takes and does; `tests/parity/test_control_parity.py` compares it with robosuite."""

import gymnasium as gym
import mujoco
import numpy as np
import pytest
from fast_envs import assert_same_states, make_envs, play, random_actions

from vla_envs.errors import UnsupportedTaskError
from vla_envs.libero.env import LiberoEnv
from vla_envs.vector.control import CONTROL_MODES

MODES = list(CONTROL_MODES)
OPEN = -1.0


def made(control: str, num_envs: int = 1, **arguments: object) -> LiberoEnv:
    return make_envs(num_envs, control=control, autoreset_mode="Disabled", **arguments)


def hold(envs: LiberoEnv) -> np.ndarray:
    """(7,): the pose that the first slot's end effector has, gripper open."""
    pose = envs.privileged(0).end_effector
    rotation = np.empty(3)
    mujoco.mju_quat2Vel(rotation, pose.quaternion, 1.0)
    return np.array([*pose.position, *rotation, OPEN])


@pytest.mark.parametrize(("control", "num_numbers"), [("osc_delta", 7), ("osc_absolute", 7), ("joint_position", 8)])
def test_the_action_space_is_that_of_the_mode(control: str, num_numbers: int):
    envs = made(control, 2, chunk_size=3)
    assert envs.single_action_space.shape == (3, num_numbers)
    assert envs.action_space.shape == (2, 3, num_numbers)
    assert envs.control == control
    one = gym.make("Libero-v0", control=control, cameras=(), detail="fast")
    assert one.action_space == gym.spaces.Box(envs.single_action_space.low[0], envs.single_action_space.high[0])
    one.close()
    envs.close()


def test_absolute_poses_are_bounded_by_metres_and_radians_and_all_else_by_one():
    low, high = CONTROL_MODES["osc_absolute"].low, CONTROL_MODES["osc_absolute"].high
    assert high == (2.0, 2.0, 2.0, np.pi, np.pi, np.pi, 1.0)
    assert low == tuple(-bound for bound in high)
    for control in ("osc_delta", "joint_position"):
        assert set(CONTROL_MODES[control].low) == {-1.0}
        assert set(CONTROL_MODES[control].high) == {1.0}


def test_equal_starts_are_equal_states_in_all_modes_since_scenes_settle_by_liberos_own_controller():
    starts = []
    for control in MODES:
        envs = made(control)
        envs.reset(options={"init_state_id": 5})
        starts += envs.get_state()
        envs.close()
    assert_same_states(starts[1:], starts[:1] * 2)


def test_an_absolute_pose_is_reached_and_kept():
    envs = made("osc_absolute")
    envs.reset(options={"init_state_id": 0})
    before = envs.privileged(0).end_effector
    target = hold(envs)
    target[:3] += [0.05, -0.08, 0.04]
    for _ in range(60):
        envs.step(target[None])
    after = envs.privileged(0).end_effector
    np.testing.assert_allclose(after.position, target[:3], atol=0.005)
    np.testing.assert_allclose(after.rotation, before.rotation, atol=0.02)
    envs.close()


@pytest.mark.parametrize("control", ["osc_delta", "osc_absolute"])
def test_a_turn_whose_square_is_zero_is_none(control: str):
    envs = made(control, 2)
    envs.reset(options={"init_state_id": 0})
    actions = np.zeros((2, 7))
    actions[:, 3] = 1e-200, 1e-100
    for _ in range(3):
        envs.step(actions)
    assert_same_states(*([state] for state in envs.get_state()))
    envs.close()


def test_a_joint_goes_on_its_own_and_an_action_beyond_one_is_clipped_to_it():
    envs = made("joint_position", 3)
    envs.reset(options={"init_state_id": 0})
    joints = 1 + envs._starts[0].scene.scene.osc.arm_qpos  # type: ignore[union-attr]
    before = envs.get_state()[0][joints]
    actions = np.zeros((3, 8))
    actions[:, 7] = OPEN
    actions[1, 0], actions[2, 0] = 1.0, 3.0
    for _ in range(10):
        envs.step(actions)
    rested, moved, clipped = (state[joints] - before for state in envs.get_state())
    assert np.abs(rested).max() < 0.002
    assert moved[0] > 0.05
    assert np.abs(moved[1:]).max() < 0.01
    np.testing.assert_array_equal(moved, clipped)
    envs.close()


def test_the_last_number_closes_the_gripper_in_every_mode():
    for control in MODES:
        envs = made(control)
        envs.reset(options={"init_state_id": 0})
        action = hold(envs) if control == "osc_absolute" else np.zeros(CONTROL_MODES[control].action_dim)
        action[-1] = 1.0
        opening = envs.privileged(0).gripper_opening
        for _ in range(10):
            envs.step(action[None])
        assert envs.privileged(0).gripper_opening < opening - 0.02, control
        envs.close()


def test_a_chunk_does_what_its_actions_do_one_by_one():
    chunked, single = made("joint_position", chunk_size=4), made("joint_position")
    actions = random_actions(chunked, 1)[0]
    for envs in (chunked, single):
        envs.reset(options={"init_state_id": 2})
    chunked.step(actions)
    play(single, actions.transpose(1, 0, 2))
    assert_same_states(chunked.get_state(), single.get_state())
    for envs in (chunked, single):
        envs.close()


def test_actions_of_another_mode_are_refused_where_their_number_tells():
    envs = made("joint_position")
    envs.reset(seed=0)
    with pytest.raises(ValueError, match=r"actions must have shape \(1, 8\), got \(1, 7\)"):
        envs.step(np.zeros((1, 7)))
    envs.close()


def test_the_scripted_expert_declines_where_its_actions_mean_something_else():
    envs = made("osc_absolute")
    envs.reset(seed=0)
    reason = "the expert plays actions of control='osc_delta', and this env has control='osc_absolute'"
    assert envs.expert_declines(0) == reason
    with pytest.raises(UnsupportedTaskError, match=reason):
        envs.make_expert(0)
    envs.close()


def test_a_dataset_can_say_how_the_arm_was_commanded():
    meanings = set()
    for control in MODES:
        envs = made(control)
        meanings.add(envs.control_mode)
        envs.close()
    assert meanings == {mode.meaning for mode in CONTROL_MODES.values()}
