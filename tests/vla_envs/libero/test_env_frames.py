"""Time within a chunk: chunks may be shorter, and a filmed slot shows what happened between a chunk's two ends."""

import copy
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from fast_envs import BOWL_ON_PLATE, almost_done, assert_same_states, make_envs, random_actions, still
from gymnasium.vector import AutoresetMode

from vla_envs.libero.env import LiberoEnv

DRAWING: dict[str, Any] = {"cameras": ("agentview", "wrist"), "render_mode": "rgb_array", "autoreset_mode": "Disabled"}
pytestmark = pytest.mark.usefixtures("opengl")


def begun(num_envs: int = 1, **arguments: Any) -> LiberoEnv:
    envs = make_envs(num_envs, **(DRAWING | arguments))
    envs.reset(seed=3)
    return envs


def test_a_chunk_in_pieces_is_the_same_as_at_once():
    whole, pieces = begun(2, chunk_size=4, cameras=()), begun(2, chunk_size=4, cameras=())
    (actions,) = random_actions(whole, 1)
    whole.step(actions)
    for piece in (actions[:, :1], actions[:, 1:]):
        *_, info = pieces.step(piece)
        assert info["num_steps"].tolist() == [piece.shape[1]] * 2
    assert_same_states(pieces.get_state(), whole.get_state())


def test_a_single_env_takes_a_shorter_chunk_and_shows_frames_too():
    env = gym.make("Libero-v0", suite=BOWL_ON_PLATE[0], task_id=0, detail="fast", image_size=32, chunk_size=4, render_every=2)
    env.reset(seed=0)
    observation, *_, info = env.step(np.zeros((3, 7)))
    assert info["num_steps"] == 3
    assert info["frames"].shape == (2, 32, 32, 3)
    np.testing.assert_array_equal(info["frames"][-1], observation["image"][:, ::-1])
    for shape in ((0, 7), (5, 7), (7,)):
        with pytest.raises(ValueError, match=r"the action must have shape \(4, 7\), got .*; a chunk may have 1 to 4 actions"):
            env.step(np.zeros(shape))
    env.close()


@pytest.mark.parametrize(("every", "shown"), [(1, [1, 2, 3, 4, 5]), (2, [2, 4, 5]), (5, [5]), (9, [5])])
def test_frames_are_what_render_shows_after_each_of_these_steps(every: int, shown: list[int]):
    filmed, plain = begun(chunk_size=5, render_every=every), begun()
    (actions,) = random_actions(filmed, 1)
    *_, info = filmed.step(actions)
    (frames,) = info["frames"]
    for step, action in enumerate(actions[0], start=1):
        plain.step(action[None])
        if step in shown:
            (picture,) = plain.render() or ()
            np.testing.assert_array_equal(frames[shown.index(step)], picture)
    assert len(frames) == len(shown)
    assert_same_states(filmed.get_state(), plain.get_state())


def test_a_slot_that_is_filmed_changes_nothing_else_and_the_others_show_nothing():
    filmed, plain = begun(2, chunk_size=3), begun(2, chunk_size=3)
    filmed.set_attr("render_every", [None, 1])
    assert filmed.get_attr("render_every") == (None, 1)
    (actions,) = random_actions(filmed, 1)
    (mine, *_, info), (theirs, *_, plain_info) = filmed.step(actions), plain.step(actions)
    assert all(np.array_equal(mine[key], theirs[key]) for key in mine)
    assert (info["frames"][0], info["frames"][1].shape) == (None, (3, 32, 32, 3))
    assert info["_frames"].tolist() == [False, True]
    assert "frames" not in plain_info
    filmed.set_attr("render_every", None)
    assert "frames" not in filmed.step(actions)[-1]


def test_a_copy_films_the_slots_that_the_env_films():
    envs = make_envs(2, cameras=("agentview",))
    envs.set_attr("render_every", [1, None])
    twin = copy.deepcopy(envs)
    assert twin.render_every == (1, None)
    twin.close()
    envs.close()


@pytest.mark.parametrize("mode", [AutoresetMode.DISABLED, AutoresetMode.SAME_STEP])
def test_the_last_frame_shows_the_success(mode: AutoresetMode):
    """The chunk ends there, and with `SAME_STEP` the frames are in the info of the episode that they show."""
    envs = begun(chunk_size=40, render_every=1, autoreset_mode=mode)
    envs.set_state([almost_done(*BOWL_ON_PLATE, envs.get_state()[0])])
    observation, _, terminated, _, info = envs.step(still(envs))
    assert terminated.all()
    if mode is AutoresetMode.SAME_STEP:
        assert "frames" not in info or not info["_frames"].any()
        observation, info = {"image": [info["final_obs"][0]["image"]]}, info["final_info"]
    frames, num_steps = info["frames"][0], int(info["num_steps"][0])
    assert 1 < num_steps == len(frames) < 40
    np.testing.assert_array_equal(frames[-1], observation["image"][0][:, ::-1])


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"render_every": 0}, "render_every must be an integer of at least 1, got 0"),
        ({"render_every": 1, "cameras": ()}, r"render_every needs a camera, got render_every=1 and cameras=\(\)"),
        (
            {"render_every": 1, "engine": "warp"},
            "Warp draws once per chunk: render_every must be None, got 1; 'mujoco' takes it",
        ),
    ],
)
def test_frames_that_cannot_be_are_refused(arguments: dict[str, Any], match: str):
    with pytest.raises(ValueError, match=match):
        make_envs(**({"cameras": ("agentview",)} | arguments))


def test_frames_that_cannot_be_are_refused_later_too():
    envs = make_envs(2)
    for values, match in (([1, None], "it has no camera"), ([1], "one value or 2"), (0, "at least 1")):
        with pytest.raises(ValueError, match=match):
            envs.set_attr("render_every", values)
    envs.close()


def test_isaac_lab_refuses_frames():
    with pytest.raises(ValueError, match="render_every is for the backend 'mujoco', got 1 for 'isaaclab'"):
        gym.make_vec("Isaac-v0", num_envs=1, backend="isaaclab", render_every=1)
