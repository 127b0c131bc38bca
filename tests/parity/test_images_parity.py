"""Pictures against stock LIBERO's observables, byte by byte, and what simplified scenes lose."""

import copy
import sys
from dataclasses import replace
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from benchmarks.parity.images import (
    compare_episode_images,
    compare_images,
    open_engine,
    pictures,
    psnr_of_fast_detail,
    states_to_draw,
)
from benchmarks.parity.stock import begin_stock
from vla_envs.libero.cache import load_scene
from vla_envs.libero.engine_scene import LiberoEngineScene
from vla_envs.libero.env import LiberoEnv
from vla_envs.libero.recent_scenes import _shared
from vla_envs.libero.scene import Scene
from vla_envs.vector.cameras import CAMERAS
from vla_envs.vector.spaces import image_key

MIN_PSNR_DB = 28.0


def test_pictures_of_the_same_state_are_identical_at_both_sizes(
    scene_and_stock: tuple[Scene, Any], drawn_scene: LiberoEngineScene
):
    scene, stock = scene_and_stock
    _, moved, near_goal = states_to_draw(scene, seed=1)
    result = compare_images(drawn_scene, stock, [(moved, 128), (moved, 256), (near_goal, 128)])
    assert result.num_images == 6
    assert result.num_identical == 6, f"a pixel differs by {result.largest_difference}"


def test_an_episode_shows_the_same_pictures_to_within_rounding(
    scene_and_stock: tuple[Scene, Any], drawn_scene: LiberoEngineScene
):
    result = compare_episode_images(drawn_scene, scene_and_stock[1], seed=2, num_steps=2)
    assert result.num_images == 4
    assert result.largest_difference <= 1
    assert result.largest_share < 0.01


def test_the_comparison_notices_another_instant_of_the_episode(drawn_scene: LiberoEngineScene):
    """LIBERO's pictures are taken a substep before the end of a control step; those of its end differ by more than rounding."""
    scene = drawn_scene.scene
    player = drawn_scene.new_player()
    player.begin(scene.init_states[0])
    player.play(np.full((1, 7), 0.8), 1)
    with open_engine(128) as engine:
        engine.begin([0], [drawn_scene], [scene.init_states[0]])
        engine.step([0], np.full((1, 1, 7), 0.8), np.array([1]), until_goal=False)
        seen = engine.pictures()["agentview"][0].astype(int)
        at_the_end = pictures(engine, drawn_scene, player.get_state())
    assert np.abs(seen - at_the_end["agentview"]).max() > 8


def test_all_cameras_give_what_liberos_camera_names_and_camera_depths_give(
    scene_and_stock: tuple[Scene, Any], drawn_scene: LiberoEngineScene, monkeypatch: pytest.MonkeyPatch
):
    """Pictures byte by byte, here no squares. LIBERO's distances are at one of the samples of a pixel, not in its middle."""
    monkeypatch.setitem(sys.modules, "h5py", ModuleType("h5py"))  # robosuite imports it beside them, for recordings
    from robosuite.utils.camera_utils import get_camera_extrinsic_matrix, get_camera_intrinsic_matrix, get_real_depth_map

    scene, stock = scene_and_stock
    height, width = 72, 96
    theirs = {name: scene.model.camera(camera).name for name, camera in drawn_scene.cameras.items()}
    assert set(theirs) | {"paperview"} == set(CAMERAS)
    begin_stock(stock, scene, scene.init_states[7])
    monkeypatch.setitem(_shared, (scene.suite, scene.task_id, "full", None), drawn_scene)
    cameras = {"cameras": tuple(theirs), "image_size": (height, width), "depth": tuple(theirs)}
    envs = LiberoEnv(1, suite=scene.suite, task_id=scene.task_id, settle_steps=0, **cameras)
    drawn, _ = envs.reset(options={"init_state_id": 7})
    for name, camera in theirs.items():
        (rgb, depth), _ = stock.env._create_camera_sensors(camera, width, height, True, None)
        seen: dict[str, Any] = {}
        np.testing.assert_array_equal(drawn[image_key(name)][0], rgb(seen)[::-1, ::-1], err_msg=camera)
        ratios = get_real_depth_map(stock.sim, depth(seen))[::-1, ::-1] / drawn[f"{name}_depth"][0]
        median, most = np.quantile(np.abs(ratios - 1), [0.5, 0.9])
        assert (median < 0.006, most < 0.02) == (True, True), (camera, median, most)
        pose = get_camera_extrinsic_matrix(stock.sim, camera)
        matrix = get_camera_intrinsic_matrix(stock.sim, camera, height, width)
        np.testing.assert_allclose(envs.camera_extrinsics(name)[0], pose, atol=1e-12)
        matrix[0, 0] *= -1  # pictures are mirrored here
        np.testing.assert_allclose(envs.camera_intrinsics(name)[0], matrix, atol=1e-12)
    envs.close()


@pytest.mark.parametrize(("wrong", "num_identical"), [("moved by a millimetre", 1), ("swapped", 0)])
def test_the_comparison_notices_a_wrong_camera(scene_and_stock: tuple[Scene, Any], wrong: str, num_identical: int):
    scene, stock = scene_and_stock
    if wrong == "swapped":
        scene = replace(scene, cameras={"agentview": scene.cameras["wrist"], "wrist": scene.cameras["agentview"]})
    else:
        scene = replace(scene, model=copy.copy(scene.model))
        scene.model.cam_pos[scene.cameras["agentview"]] += [0.0, 0.001, 0.0]
    result = compare_images(LiberoEngineScene(scene), stock, [(scene.init_states[0], 128)])
    assert (result.num_images, result.num_identical) == (2, num_identical)


def test_scenes_drawn_in_turn_look_as_if_drawn_alone(drawn_scene: LiberoEngineScene):
    other = LiberoEngineScene(load_scene("libero_spatial", 0, detail="fast"))
    views = [(scene, scene.scene.init_states[index]) for index in range(3) for scene in (drawn_scene, other)]
    with open_engine(128) as engine:
        alone = [pictures(engine, *view) for view in views[0::2]] + [pictures(engine, *view) for view in views[1::2]]
        in_turn = [pictures(engine, *view) for view in views]
    for expected, drawn in zip(alone, in_turn[0::2] + in_turn[1::2], strict=True):
        for camera in expected:
            np.testing.assert_array_equal(drawn[camera], expected[camera])


@pytest.mark.slow
def test_simplified_scenes_keep_28_decibels_in_tasks_of_two_suites():
    """Those whose scenes other tests compile, too; `make parity` does all tasks."""
    for suite, task_id in (("libero_goal", 3), ("libero_10", 2)):
        full, fast = load_scene(suite, task_id), load_scene(suite, task_id, detail="fast")
        assert fast.model.nmeshface < full.model.nmeshface / 4
        states = states_to_draw(full, seed=4)[:2]
        ratios = psnr_of_fast_detail(LiberoEngineScene(full), LiberoEngineScene(fast), states)
        assert min(ratios.values()) >= MIN_PSNR_DB, (suite, ratios)
