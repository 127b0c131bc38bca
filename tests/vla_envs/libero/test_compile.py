"""What compiling takes out of LIBERO and robosuite, against what is in them."""

from pathlib import Path
from typing import Any

import mujoco
import numba
import numpy as np
import pytest

from vla_envs.errors import MissingDependencyError
from vla_envs.libero.bundle import load_bundle, save_bundle
from vla_envs.libero.compile import build_libero, compile_scene
from vla_envs.libero.goals import JointPast
from vla_envs.libero.scene import Placement, Scene
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


def test_controller_constants_are_of_one_type_compiled_or_read_so_that_the_control_step_is_compiled_once(
    scene: Scene, tmp_path: Path
):
    save_bundle(scene, tmp_path / "stove.scene", origin="here", portable=False)
    assert numba.typeof(scene.osc) == numba.typeof(load_bundle(tmp_path / "stove.scene").osc)


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


@pytest.fixture(scope="module")
def drawer_scene() -> Scene:
    """One bowl in a drawer, one on a cabinet, and three objects on the table."""
    return compile_scene("libero_spatial", 4, detail="full")


@pytest.fixture(scope="module")
def book_scene() -> Scene:
    """A book that lies at any of several angles, and a mug."""
    return compile_scene("libero_10", 5, detail="full")


def poses(scene: Scene, placement: Placement) -> np.ndarray:
    """(I, 7): the object in the stored initial states."""
    return scene.init_states[:, 1 + placement.qpos_address : 8 + placement.qpos_address]


@pytest.mark.parametrize("name", ["drawer_scene", "book_scene"])
def test_placements_on_the_table_are_where_the_benchmark_puts_objects(name: str, request: pytest.FixtureRequest):
    scene = request.getfixturevalue(name)
    on_table = [placement for placement in scene.placements if placement.site < 0 and not placement.attached_to]
    assert len(on_table) >= 2
    for placement in on_table:
        ((x_min, y_min, x_max, y_max),), stored = placement.ranges, poses(scene, placement)[:, :2]
        for low, high, values in ((x_min, x_max, stored[:, 0]), (y_min, y_max, stored[:, 1])):
            assert low - 1e-3 <= values.min() < low + 0.2 * (high - low), placement.object_name
            assert high - 0.2 * (high - low) < values.max() <= high + 1e-3, placement.object_name


def test_placements_on_fixtures_are_where_the_benchmark_puts_objects(drawer_scene: Scene):
    model, fixtures_vary = drawer_scene.model, 0.03
    data = mujoco.MjData(model)
    on_fixture = {model.site(placement.site).name: placement for placement in drawer_scene.placements if placement.site >= 0}
    assert set(on_fixture) == {"wooden_cabinet_1_top_region", "wooden_cabinet_1_top_side"}
    for placement in on_fixture.values():
        ((x_min, y_min, x_max, y_max),) = placement.ranges
        for state, pose in zip(drawer_scene.init_states, poses(drawer_scene, placement), strict=True):
            data.qpos[:] = state[1 : 1 + model.nq]
            mujoco.mj_kinematics(model, data)
            x, y = pose[:2] - data.site_xpos[placement.site, :2]
            assert x_min - fixtures_vary < x < x_max + fixtures_vary
            assert y_min - fixtures_vary < y < y_max + fixtures_vary


def test_an_object_on_another_is_placed_relative_to_it():
    scene = compile_scene("libero_spatial", 3, detail="full")
    names = [placement.object_name for placement in scene.placements]
    bowl, box = (scene.placements[names.index(name)] for name in ("akita_black_bowl_1", "cookies_1"))
    assert bowl.attached_to == "cookies_1"
    assert names.index("cookies_1") < names.index("akita_black_bowl_1")
    np.testing.assert_array_equal(bowl.ranges, np.zeros((1, 4)))
    np.testing.assert_allclose(poses(scene, bowl)[:, :2], poses(scene, box)[:, :2])


@pytest.mark.parametrize("name", ["drawer_scene", "book_scene"])
def test_orientations_are_the_benchmarks(name: str, request: pytest.FixtureRequest):
    scene = request.getfixturevalue(name)
    for placement in scene.placements:
        yaws = []
        for quaternion in poses(scene, placement)[:, 3:]:
            turn, back = np.zeros(4), np.zeros(4)
            mujoco.mju_negQuat(back, placement.orientation)
            mujoco.mju_mulQuat(turn, quaternion, back)
            np.testing.assert_allclose(turn[1:3], 0, atol=1e-6)
            yaws.append(2 * np.arctan(turn[3] / turn[0]))
        low, high = placement.yaw_range
        margin = 0.1 * (high - low) + 1e-6
        assert low - 1e-6 <= min(yaws) <= low + margin
        assert high - margin <= max(yaws) <= high + 1e-6
        assert (high - low) == pytest.approx(np.pi / 4 if placement.object_name == "black_book_1" else 0.0)


@pytest.mark.parametrize(
    ("raised", "expected", "message"),
    [
        (
            FileNotFoundError(2, "No such file or directory", "custom_objects/red_box.xml"),
            MissingDependencyError,
            r"lists suite 'libero_goal' but does not hold its files .*red_box\.xml.* choose another suite",
        ),
        (AssertionError("placed twice"), ValueError, r"LIBERO itself cannot build libero_goal task 7: placed twice"),
    ],
)
def test_what_libero_cannot_build_is_an_error_that_names_the_suite_and_the_reason(
    monkeypatch: pytest.MonkeyPatch, raised: Exception, expected: type[Exception], message: str
):
    def build(**kwargs: Any) -> None:
        raise raised

    monkeypatch.setattr("libero.libero.envs.env_wrapper.ControlEnv", build)
    with pytest.raises(expected, match=message):
        compile_scene(SUITE, STOVE_TASK, detail="full")


def test_a_fixture_seed_that_numpy_does_not_take_is_an_error():
    with pytest.raises(ValueError, match=r"fixture_seed must be in 0\.\.2\*\*32 - 1, got -1"):
        compile_scene(SUITE, STOVE_TASK, detail="full", fixture_seed=-1)


def test_a_task_that_is_not_there_is_an_error():
    with pytest.raises(ValueError, match=r"libero_goal has tasks 0\.\.9, got -1"):
        compile_scene(SUITE, -1, detail="full")
