"""Other cameras, sizes, distances and bodies of LiberoEnv, and what takes pixels to the world, beside MuJoCo's own renderer."""

from typing import Any

import gymnasium as gym
import mujoco
import numpy as np
import pytest
from fast_envs import BOWL_IN_DRAWER, loaded_scene, make_envs, random_actions
from gymnasium.vector import AutoresetMode

from vla_envs.errors import NotResetError
from vla_envs.libero.env import LiberoEnv
from vla_envs.vector.cameras import Camera
from vla_envs.vector.surfaces import Surfaces

pytestmark = pytest.mark.usefixtures("opengl")

SUITE, TASK = BOWL_IN_DRAWER
MODEL_NAMES = {"agentview": "agentview", "wrist": "robot0_eye_in_hand", "birdview": "birdview"}
"""Names here and in the model."""


def reset_envs(num_envs: int = 1, **options: Any) -> tuple[LiberoEnv, dict[str, Any]]:
    envs = make_envs(num_envs, SUITE, (TASK,), **({"settle_steps": 0} | options))
    return envs, envs.reset(options={"init_state_id": range(num_envs)})[0]


def test_distances_and_bodies_are_those_of_mujocos_renderer_pixel_for_pixel():
    model, (height, width), names = loaded_scene(SUITE, TASK).model, (48, 64), tuple(MODEL_NAMES)
    envs, observation = reset_envs(2, cameras=names, image_size=(height, width), depth=names, segmentation=names)
    assert observation in envs.observation_space
    data, shown = mujoco.MjData(model), mujoco.MjvOption()
    shown.geomgroup[0] = 0
    with mujoco.Renderer(model, height, width) as renderer:
        for slot, state in enumerate(envs.get_state()):
            data.qpos[:] = state[1 : 1 + model.nq]
            mujoco.mj_forward(model, data)
            for name, camera in MODEL_NAMES.items():
                renderer.update_scene(data, camera, shown)
                renderer.enable_depth_rendering()
                np.testing.assert_array_equal(observation[f"{name}_depth"][slot, :, ::-1, 0], renderer.render())
                renderer.enable_segmentation_rendering()
                ids, kinds = np.moveaxis(renderer.render(), -1, 0)
                is_site = kinds == int(mujoco.mjtObj.mjOBJ_SITE)
                assert (is_site | (kinds == int(mujoco.mjtObj.mjOBJ_GEOM)) | (kinds == -1)).all()
                bodies = np.where(is_site, model.site_bodyid[ids.clip(0, model.nsite - 1)], model.geom_bodyid[ids])
                bodies[kinds == -1] = -1
                np.testing.assert_array_equal(observation[f"{name}_segmentation"][slot, :, ::-1, 0], bodies)
    envs.close()


def points_seen(envs: LiberoEnv, observation: dict[str, Any], camera: str, slot: int, body: str) -> np.ndarray:
    """(P, 3) m in the world: where a body's surface is, by the pixels that show it, their distances and the matrices."""
    rows, columns = np.nonzero(observation[f"{camera}_segmentation"][slot, ..., 0] == envs.body_names(slot).index(body))
    distances = observation[f"{camera}_depth"][slot, rows, columns, 0]
    corner = np.stack([columns + 0.5, rows + 0.5, np.ones(len(rows))])
    points = distances * (np.linalg.inv(envs.camera_intrinsics(camera)[slot]) @ corner)
    return (envs.camera_extrinsics(camera)[slot] @ [*points, np.ones(len(rows))])[:3].T


def test_pixels_and_distances_lead_to_the_bodies_that_are_there():
    corner = Camera(name="corner", position=(0.6, 0.7, 1.6), target=(0, 0, 0.95), fovy_deg=50)
    names = ("agentview", "wrist", "corner")
    options = {"image_size": (96, 128), "depth": names, "segmentation": names}
    envs, observation = reset_envs(2, cameras=("agentview", "wrist", corner), **options)
    for slot in range(2):
        view = envs.privileged(slot)
        for name in names:
            for item in ("plate_1", "akita_black_bowl_1"):
                points, body = points_seen(envs, observation, name, slot, f"{item}_main"), view.body(item)
                assert len(points) > 30
                box = view.box(item)
                own = (points - body.position) @ body.rotation
                assert (own > box.low - 0.01).all()
                assert (own < box.high + 0.01).all()
    envs.close()


def test_known_bodies_are_found_where_the_matrices_project_them():
    envs, observation = reset_envs(2, cameras=("agentview",), image_size=(96, 128), segmentation=("agentview",))
    intrinsics, extrinsics = envs.camera_intrinsics("agentview"), envs.camera_extrinsics("agentview")
    for slot in range(2):
        for name in ("plate_1_main", "akita_black_bowl_1_main", "cream_cheese_1_main"):
            body = envs.privileged(slot).body(name)
            point = np.linalg.inv(extrinsics[slot]) @ [*body.position, 1.0]
            column, row, _ = intrinsics[slot] @ point[:3] / point[2]
            seen = int(observation["agentview_segmentation"][slot, int(row), int(column), 0])
            assert envs.body_names(slot)[seen] == name
    envs.close()


def test_the_wrists_matrix_is_of_the_instant_that_its_picture_shows():
    """A substep before the state. The table is then as high by the moving camera as by the one that stands still."""
    names = ("agentview", "wrist")
    envs, _ = reset_envs(cameras=names, image_size=96, depth=names, segmentation=names)
    down = np.zeros((1, 7), np.float32)
    down[0, 2] = -1.0
    for _ in range(4):
        observation, *_ = envs.step(down)
    heights = {name: np.median(points_seen(envs, observation, name, 0, "table")[:, 2]) for name in names}
    seen = envs.camera_extrinsics("wrist")
    envs.set_state(envs.get_state())
    lag = np.abs(envs.camera_extrinsics("wrist") - seen)[0, 2, 3]
    assert lag > 1e-4
    assert heights["wrist"] == pytest.approx(heights["agentview"], abs=lag / 5)
    envs.close()


def test_a_camera_of_ones_own_in_the_place_of_liberos_draws_its_picture_byte_for_byte():
    """Also between pictures of other cameras, and the other way round."""
    scene = loaded_scene(SUITE, TASK)
    camera = scene.cameras["agentview"]
    place = {"position": scene.model.cam_pos[camera].tolist(), "quaternion": scene.model.cam_quat[camera].tolist()}
    same = Camera(name="same", fovy_deg=float(scene.model.cam_fovy[camera]), **place)
    envs, observation = reset_envs(cameras=(same, "wrist", "agentview"), image_size=(40, 56), depth=("same", "agentview"))
    np.testing.assert_array_equal(observation["same_image"], observation["image"])
    np.testing.assert_array_equal(observation["same_depth"], observation["agentview_depth"])
    for matrices in (envs.camera_intrinsics, envs.camera_extrinsics):
        np.testing.assert_allclose(matrices("same"), matrices("agentview"), atol=1e-12)
    envs.close()


def test_pictures_do_not_change_when_more_is_asked_for_and_cost_no_second_pass_when_it_is_not(monkeypatch: pytest.MonkeyPatch):
    plain, expected = reset_envs(2, cameras=("agentview",))
    passes = []
    draw = Surfaces.draw
    monkeypatch.setattr(Surfaces, "draw", lambda *args, **kwargs: (passes.append(1), draw(*args, **kwargs)))
    played, *_ = plain.step(random_actions(plain, 1)[0])
    assert passes == []
    more = {"cameras": ("birdview", "agentview"), "depth": ("agentview",), "segmentation": ("agentview",)}
    envs, observation = reset_envs(2, **more)
    assert len(passes) == 2
    np.testing.assert_array_equal(observation["image"], expected["image"])
    observation, *_ = envs.step(random_actions(envs, 1)[0])
    assert len(passes) == 4
    np.testing.assert_array_equal(observation["image"], played["image"])
    plain.close()
    envs.close()


def test_an_episodes_first_distances_come_with_its_start_and_the_last_are_kept_beside_them():
    cameras = {"cameras": ("wrist",), "depth": ("wrist",), "segmentation": ("wrist",)}
    envs, begun = reset_envs(2, max_episode_steps=1, autoreset_mode=AutoresetMode.SAME_STEP, **cameras)
    _, _, _, _, info = envs.step(random_actions(envs, 1)[0])
    again, _ = envs.reset(options={"init_state_id": [0, 1]})
    for key in ("wrist_depth", "wrist_segmentation"):
        np.testing.assert_array_equal(again[key], begun[key])
    for slot, last in enumerate(info["final_obs"]):
        assert last in envs.single_observation_space
        assert (last["wrist_depth"] != begun["wrist_depth"][slot]).any()
    envs.close()


def test_a_single_env_has_the_same_without_the_leading_axis_and_is_made_again_from_json():
    loaded_scene(SUITE, TASK)
    top = Camera(name="top", position=(0.2, 0.3, 2.0), target=(0.0, 0.0, 0.9))
    options = {"suite": SUITE, "task_id": TASK, "detail": "fast", "settle_steps": 0, "image_size": {"top": (24, 32)}}
    env = gym.make("Libero-v0", cameras=(top,), depth=("top",), **options)
    with pytest.raises(NotResetError, match="camera_extrinsics: slot 0 was never reset"):
        env.unwrapped.camera_extrinsics("top")
    twin = gym.make(gym.envs.registration.EnvSpec.from_json(env.spec.to_json()))
    observation, other = (one.reset(options={"init_state_id": 0})[0] for one in (env, twin))
    assert observation in env.observation_space
    assert observation["top_depth"].shape == (24, 32, 1)
    np.testing.assert_array_equal(observation["top_image"], other["top_image"])
    assert env.unwrapped.camera_intrinsics("top").shape == (3, 3)
    np.testing.assert_array_equal(env.unwrapped.camera_extrinsics("top")[:3, 3], top.position)
    assert "plate_1_main" in env.unwrapped.body_names()
    env.close()
    twin.close()


def test_what_the_env_does_not_draw_is_refused_by_name():
    envs, _ = reset_envs(2, cameras=("agentview",), max_episode_steps=1)
    assert [matrix.shape for matrix in envs.call("camera_extrinsics", "agentview")] == [(4, 4)] * 2
    assert envs.call("body_names")[1] == envs.body_names(1)
    with pytest.raises(ValueError, match="camera must be one of 'agentview', got 'birdview'"):
        envs.camera_intrinsics("birdview")
    with pytest.raises(ValueError, match=r"slot must be in 0\.\.1, got 2"):
        envs.body_names(2)
    envs.close()
    lacking = make_envs(1, SUITE, (TASK,), cameras=("paperview",))
    with pytest.raises(ValueError, match="the scene has no camera 'paperview', only 'agentview', 'wrist', 'frontview'"):
        lacking.reset()
    lacking.close()
