"""Physics, proprioception and rewards against stock LIBERO: the same initial state, the same random actions."""

from dataclasses import replace
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

from benchmarks.parity.states import (
    END_EFFECTOR_TOLERANCE_MM,
    POSITION_TOLERANCE,
    Episode,
    StateComparison,
    differences,
    play_here,
    play_stock,
    random_episode,
    stock_proprioception,
)
from benchmarks.parity.stock import begin_stock, switch_cameras
from vla_envs.libero.scene import Scene
from vla_envs.vector.robot_state import ROBOT_STATE

JOINT_TOLERANCE = 1e-6


SEED = 11


@pytest.fixture(scope="module")
def liberos_episode(scene_and_stock: tuple[Scene, Any]) -> Episode:
    scene, stock = scene_and_stock
    return play_stock(stock, scene, *random_episode(scene, SEED))


@pytest.fixture(scope="module")
def comparison(scene_and_stock: tuple[Scene, Any], liberos_episode: Episode) -> StateComparison:
    scene, _ = scene_and_stock
    return differences(scene, play_here(scene, *random_episode(scene, SEED)), liberos_episode)


def test_arm_joints_stay_within_a_microradian_for_20_control_steps(comparison: StateComparison):
    assert comparison.joints < JOINT_TOLERANCE


def test_all_positions_stay_within_a_tenth_of_a_millimetre_for_20_control_steps(comparison: StateComparison):
    assert comparison.positions < POSITION_TOLERANCE


def test_the_end_effector_stays_within_two_millimetres_for_100_control_steps(comparison: StateComparison):
    assert comparison.end_effector_mm < END_EFFECTOR_TOLERANCE_MM


def test_proprioception_is_liberos(comparison: StateComparison):
    assert comparison.proprioception < JOINT_TOLERANCE


@pytest.mark.parametrize("constant", ["kp", "kd", "output_max", "initial_joints", "gripper_speed"])
def test_the_comparison_notices_a_controller_that_is_slightly_wrong(
    scene_and_stock: tuple[Scene, Any], liberos_episode: Episode, constant: str
):
    scene, _ = scene_and_stock
    wrong = replace(scene, osc=scene.osc._replace(**{constant: 1.001 * getattr(scene.osc, constant)}))
    result = differences(scene, play_here(wrong, *random_episode(scene, SEED)), liberos_episode)
    assert max(result.joints, result.proprioception) > 10 * JOINT_TOLERANCE


def public_env(scene: Scene, **options: Any) -> gym.vector.VectorEnv:
    """One slot of the scene's task, without cameras, as a user makes it."""
    mode = "vector_entry_point"
    return gym.make_vec("Libero-v0", 1, mode, suite=scene.suite, task_ids=[scene.task_id], cameras=(), **options)


def test_an_episode_of_the_public_env_is_liberos_evaluation(scene_and_stock: tuple[Scene, Any]):
    """Reset, ten settling steps, then chunks: what a policy reads, and what it earns."""
    scene, stock = scene_and_stock
    env = public_env(scene, chunk_size=5)
    observation, _ = env.reset(options={"init_state_id": 7})
    switch_cameras(stock, on=False)
    begin_stock(stock, scene, scene.init_states[7])
    for _ in range(10):
        theirs, *_ = stock.step([0, 0, 0, 0, 0, 0, -1])
    np.testing.assert_allclose(observation["state"][0], stock_proprioception(theirs), atol=JOINT_TOLERANCE)
    rng = np.random.default_rng(5)
    for _ in range(4):
        chunk = rng.uniform(-1.5, 1.5, (5, 7)).astype(np.float32)  # beyond 1 both sides clip
        observation, reward, *_ = env.step(chunk[None].clip(-1, 1))
        for action in chunk:
            theirs, their_reward, *_ = stock.step(action)
        np.testing.assert_allclose(observation["state"][0], stock_proprioception(theirs), atol=2 * JOINT_TOLERANCE)
        assert reward[0] == their_reward
    np.testing.assert_allclose(env.unwrapped.get_state()[0], stock.get_sim_state(), atol=POSITION_TOLERANCE)
    env.close()


def assert_same_robot_state(mine: dict[str, Any], theirs: dict[str, Any]) -> None:
    """Every key, the quaternion's sign included; robosuite has no matrix: it is that of its quaternion."""
    from robosuite.utils.transform_utils import quat2mat

    for key in ROBOT_STATE:
        expected = quat2mat(theirs["robot0_eef_quat"]) if key == "robot0_eef_mat" else theirs[key]
        np.testing.assert_allclose(mine[key][0], expected, atol=JOINT_TOLERANCE, err_msg=key)


def test_the_robots_state_is_what_libero_observes(scene_and_stock: tuple[Scene, Any]):
    """While the arm moves, and in postures all over the arm's range, where quaternions have either sign."""
    scene, stock = scene_and_stock
    env = public_env(scene, settle_steps=0, state_keys=tuple(ROBOT_STATE))
    rng = np.random.default_rng(SEED)
    observation, _ = env.reset(options={"init_state_id": 3})
    switch_cameras(stock, on=False)
    theirs = begin_stock(stock, scene, scene.init_states[3])
    assert set(ROBOT_STATE) - set(theirs) == {"robot0_eef_mat"}
    for action in rng.uniform(-1, 1, (20, 7)).astype(np.float32):
        assert_same_robot_state(observation, theirs)
        observation, *_ = env.step(action[None])
        theirs, *_ = stock.step(action)
    assert_same_robot_state(observation, theirs)
    signs = set()
    state = env.unwrapped.get_state()[0]
    for _ in range(8):
        state[1 + scene.osc.arm_qpos] = rng.uniform(-2.5, 2.5, 7)
        theirs = stock.set_init_state(state)
        assert_same_robot_state(env.unwrapped.set_state([state]), theirs)
        signs.add(np.sign(theirs["robot0_eef_quat"][3]))
    assert signs == {-1.0, 1.0}
    env.close()
