"""What the cameras of LiberoEnv show, when they draw, and what says what draws."""

import logging
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from fast_envs import almost_done, assert_same_states, make_envs, random_actions
from gymnasium.vector import AutoresetMode

from vla_envs.libero.engine_scene import LiberoEngineScene
from vla_envs.libero.env import LiberoEnv
from vla_envs.vector.gl_context import _choose_device, _log_once, open_device
from vla_envs.vector.rendering import Frame, RenderPool

pytestmark = pytest.mark.usefixtures("opengl")


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Frame]:
    """The frames that are drawn from here on."""
    frames: list[Frame] = []
    draw = RenderPool.draw

    def draw_and_count(pool: RenderPool, asked_for: list[Frame]) -> None:
        frames.extend(asked_for)
        draw(pool, asked_for)

    monkeypatch.setattr(RenderPool, "draw", draw_and_count)
    return frames


def look(envs: LiberoEnv, **options: Any) -> dict[str, Any]:
    return envs.reset(options={"init_state_id": 0} | options)[0]


def test_each_slot_is_drawn_once_per_call_however_long_the_chunk(drawn: list[Frame]):
    envs = make_envs(2, chunk_size=5, cameras=("agentview", "wrist"), autoreset_mode=AutoresetMode.DISABLED)
    envs.reset(options={"init_state_id": [0, 1]})
    assert len(drawn) == 4
    for action in random_actions(envs, 2):
        drawn.clear()
        envs.step(action)
        assert len(drawn) == 4
    envs.close()


def test_a_chunk_that_ends_early_is_drawn_once_and_a_finished_slot_not_at_all(drawn: list[Frame]):
    envs = make_envs(2, chunk_size=16, cameras=("agentview",), autoreset_mode=AutoresetMode.DISABLED)
    look(envs)
    start = envs.get_state()[1]
    envs.set_state([almost_done("libero_spatial", 0, start), start])
    drawn.clear()
    *_, info = envs.step(0.1 * random_actions(envs, 1)[0])
    assert info["success"].tolist() == [True, False]
    assert len(drawn) == 2
    drawn.clear()
    envs.step(random_actions(envs, 1)[0])
    assert len(drawn) == 1
    envs.close()


def test_equal_starts_are_drawn_once(drawn: list[Frame]):
    envs = make_envs(3, cameras=("agentview",))
    first = look(envs)
    assert len(drawn) == 1
    again = look(envs)
    assert len(drawn) == 1
    for slot in range(3):
        np.testing.assert_array_equal(first["image"][0], again["image"][slot])
    envs.close()


def test_a_picture_shows_the_state_that_the_chunk_ended_in():
    """A chunk is drawn as its last action alone would be."""
    envs, others = (make_envs(1, chunk_size=chunk_size, cameras=("agentview",)) for chunk_size in (4, 2))
    look(envs)
    look(others)
    actions = random_actions(envs, 1)[0]
    whole, *_ = envs.step(actions)
    halves = [others.step(actions[:, half : half + 2])[0]["image"] for half in (0, 2)]
    np.testing.assert_array_equal(whole["image"], halves[1])
    assert (halves[0] != halves[1]).any()
    envs.close()
    others.close()


def test_without_cameras_nothing_is_drawn_and_no_gl_thread_is_started(drawn: list[Frame]):
    envs = make_envs(2, cameras=())
    observation, info = envs.reset(seed=0)
    assert set(observation) == {"state", "instruction"}
    envs.step(random_actions(envs, 1)[0])
    assert drawn == []
    assert envs.renderer == ""
    assert info["renderer"].tolist() == ["", ""]
    assert envs._engine._renderers is None
    envs.close()


def test_physics_does_not_depend_on_cameras():
    states = []
    for cameras in ((), ("wrist",)):
        envs = make_envs(1, cameras=cameras, chunk_size=3)
        look(envs)
        envs.step(random_actions(envs, 1)[0])
        states.append(envs.get_state())
        envs.close()
    assert_same_states(*states)


def test_the_wrist_camera_comes_under_its_own_name_and_alone_if_alone_asked_for():
    both, wrist = make_envs(1, cameras=("agentview", "wrist")), make_envs(1, cameras=("wrist",), render_mode="rgb_array")
    together, alone = look(both), look(wrist)
    np.testing.assert_array_equal(together["wrist_image"], alone["wrist_image"])
    assert "image" not in alone
    assert (together["wrist_image"] != together["image"]).any()
    np.testing.assert_array_equal(wrist.render()[0], alone["wrist_image"][0][:, ::-1])
    both.close()
    wrist.close()


def test_render_shows_the_scene_upright_and_not_mirrored():
    """A bowl that is moved changes the picture where a pinhole camera sees it, and neither upside down nor left for right."""
    envs = make_envs(1, cameras=("agentview",), image_size=128, render_mode="rgb_array")
    observation = look(envs)
    np.testing.assert_array_equal(envs.render()[0], observation["image"][0][:, ::-1])
    scene = envs._scenes[0]
    player = scene.new_player()
    here = envs.get_state()[0]
    player.begin(here)
    address = 1 + scene.model.jnt_qposadr[scene.model.body_jntadr[scene.scene.goal.predicates[0].body]]
    there = here.copy()
    there[address : address + 3] += [0.0, 0.15, 0.1]
    pictures = []
    for state in (here, there):
        envs.set_state([state])
        pictures.append(envs.render()[0])
    changed = np.argwhere((pictures[0] != pictures[1]).any(axis=2))[:, ::-1]
    points = np.array([project(player, scene, state[address : address + 3], 128) for state in (here, there)])
    flips = {"none": points, "mirrored": [128, 0] + points * [-1, 1], "upside down": [0, 128] + points * [1, -1]}
    furthest = {
        name: max(np.linalg.norm(changed - point, axis=1).min() for point in flipped) for name, flipped in flips.items()
    }
    assert furthest["none"] < 3
    assert furthest["mirrored"] > 10
    assert furthest["upside down"] > 10
    envs.close()


def project(player: Any, scene: LiberoEngineScene, point: np.ndarray, size: int) -> tuple[float, float]:
    """Column and row at which "agentview" sees a point, by the pinhole formula: columns to the right, rows downwards."""
    camera = scene.cameras["agentview"]
    position, axes = player._data.cam_xpos[camera], player._data.cam_xmat[camera].reshape(3, 3)
    right, up, backward = axes.T @ (point - position)
    focal = size / 2 / np.tan(np.radians(scene.model.cam_fovy[camera]) / 2)
    return size / 2 + focal * right / -backward, size / 2 - focal * up / -backward


def test_render_gives_nothing_without_a_render_mode_and_needs_a_camera():
    envs = make_envs(1)
    envs.reset(seed=0)
    assert envs.render() is None
    envs.close()
    blind = make_envs(1, render_mode="rgb_array")
    blind.reset(seed=0)
    with pytest.raises(ValueError, match="render needs a camera"):
        blind.render()
    blind.close()


@pytest.mark.parametrize("device", ["auto", "cuda", "cpu"])
def test_what_draws_is_reported_in_the_info_in_an_attribute_and_in_the_log(device: str, caplog: pytest.LogCaptureFixture):
    _choose_device.cache_clear()
    _log_once.cache_clear()
    caplog.set_level(logging.INFO, "vla_envs")
    envs = make_envs(2, cameras=("agentview",), device=device)
    _, info = envs.reset(seed=0)
    assert envs.renderer
    assert info["renderer"].tolist() == [envs.renderer] * 2
    assert envs.renderer in caplog.text
    assert open_device(device).is_gpu or device != "cuda" or "no GPU can render here" in caplog.text
    envs.close()


def test_full_detail_draws_other_pixels_of_the_same_scene():
    fast = make_envs(1, cameras=("agentview",), image_size=64)
    full = gym.make_vec("Libero-v0", num_envs=1, task_ids=[0], image_size=64, chunk_size=2)
    (simple,), (rich,) = look(fast)["image"], look(full)["image"]
    difference = np.abs(simple.astype(float) - rich)
    assert 0 < difference.mean() < 20
    observation, *_ = full.step(random_actions(full, 1)[0])
    assert (observation["image"][0] != rich).any()
    full.close()
    fast.close()


def test_the_stoves_glow_is_each_slots_own():
    """Slots share one model: the look of one slot's burner must not show in another's picture."""
    suite, task_id = "libero_10", 2
    envs = make_envs(2, suite, (task_id,), cameras=("agentview",), image_size=64)
    look(envs)
    cold = envs.get_state()[0]
    hot = cold.copy()
    switch = envs._scenes[task_id].scene.visual_switches[0]
    hot[1 + switch.qpos_address] = switch.threshold + 0.1
    alone = [envs.set_state([state, state])["image"] for state in (cold, hot)]
    assert (alone[0][0] != alone[1][0]).any()
    for _ in range(3):
        mixed = envs.set_state([cold, hot])["image"]
        np.testing.assert_array_equal(mixed[0], alone[0][0])
        np.testing.assert_array_equal(mixed[1], alone[1][1])
        mixed = envs.set_state([hot, cold])["image"]
        np.testing.assert_array_equal(mixed[0], alone[1][0])
        np.testing.assert_array_equal(mixed[1], alone[0][1])
    envs.close()
