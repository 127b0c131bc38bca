"""What compiling takes out of LIBERO and robosuite, against what is in them."""

from typing import Any

import numpy as np
import pytest

from vla_envs.libero.compile import build_libero, compile_scene
from vla_envs.libero.goals import JointPast
from vla_envs.libero.scene import Scene
from vla_envs.libero.suites import initial_states

SUITE, STOVE_TASK = "libero_goal", 7


@pytest.fixture(scope="module")
def scene() -> Scene:
    return compile_scene(SUITE, STOVE_TASK, detail="full")


@pytest.fixture(scope="module")
def libero() -> Any:
    env = build_libero(SUITE, STOVE_TASK)
    yield env
    env.close()


def test_a_task_always_looks_the_same(scene: Scene, libero: Any):
    np.testing.assert_array_equal(scene.model.body_pos, libero.sim.model._model.body_pos)
    np.testing.assert_array_equal(scene.model.body_quat, libero.sim.model._model.body_quat)


def test_compiling_leaves_numpys_random_numbers_alone():
    np.random.seed(5)
    expected = np.random.random(3)
    np.random.seed(5)
    build_libero(SUITE, STOVE_TASK).close()
    np.testing.assert_array_equal(np.random.random(3), expected)


def test_initial_states_are_the_benchmarks_and_fit_the_model(scene: Scene):
    np.testing.assert_array_equal(scene.init_states, initial_states(SUITE, STOVE_TASK))
    assert scene.init_states.shape == (50, 1 + scene.model.nq + scene.model.nv)


def test_controller_constants_are_robosuites(scene: Scene, libero: Any):
    controller, osc = libero.robots[0].controller, scene.osc
    np.testing.assert_array_equal(osc.kp, controller.kp)
    np.testing.assert_array_equal(osc.kd, controller.kd)
    np.testing.assert_array_equal(osc.output_max, controller.output_max)
    np.testing.assert_array_equal(osc.initial_joints, controller.initial_joint)
    np.testing.assert_array_equal(osc.arm_qpos, controller.qpos_index)
    np.testing.assert_array_equal(osc.arm_dofs, controller.qvel_index)
    assert scene.model.site(osc.grip_site).name == controller.eef_name
    assert osc.substeps == 25
    np.testing.assert_array_equal(libero.robots[0].torque_limits, [osc.torque_min, osc.torque_max])


def test_cameras_are_liberos_two(scene: Scene):
    names = {name: scene.model.camera(camera).name for name, camera in scene.cameras.items()}
    assert names == {"agentview": "agentview", "wrist": "robot0_eye_in_hand"}


def test_the_stove_glows_where_libero_turns_it_on(scene: Scene, libero: Any):
    (switch,), stove = scene.visual_switches, libero.get_object("flat_stove_1")
    assert stove.turn_on(switch.threshold)
    assert not stove.turn_on(np.nextafter(switch.threshold, -np.inf))
    assert scene.model.site(switch.site_id).name == "flat_stove_1_burner"
    model = libero.sim.model._model
    for knob, rgba in ((switch.threshold + 0.1, switch.rgba_on), (switch.threshold - 0.1, switch.rgba_off)):
        libero.sim.data.qpos[switch.qpos_address] = knob
        libero._post_process()
        np.testing.assert_array_equal(model.site_rgba[switch.site_id], rgba)


def test_the_goal_asks_for_the_same_knob(scene: Scene):
    (predicate,), (switch,) = scene.goal.predicates, scene.visual_switches
    assert predicate == JointPast(
        qpos_addresses=(switch.qpos_address,), comparison=">=", threshold=switch.threshold, every=False
    )


@pytest.mark.parametrize("task", [("libero_spatial", 0), ("libero_10", 5)], ids=lambda task: task[0])
def test_placements_cover_where_the_benchmark_puts_objects(task: tuple[str, int]):
    scene = compile_scene(*task, detail="full")
    positions = scene.init_states[:, 1:]
    standing = [placement for placement in scene.placements if len(placement.ranges)]
    assert len(standing) >= 2
    for placement in standing:
        xy = positions[:, placement.qpos_address : placement.qpos_address + 2]
        low, high = placement.ranges[:, None, :2], placement.ranges[:, None, 2:]
        outside = np.maximum(low - xy, xy - high).max(axis=2).min(axis=0)
        assert outside.max() < 0.01, placement.object_name
        assert (high - low).max() < 1.0


def test_a_task_that_is_not_there_is_an_error():
    with pytest.raises(ValueError, match=r"libero_goal has tasks 0\.\.9, got -1"):
        compile_scene(SUITE, -1, detail="full")
