"""What cannot work is refused with what was got and what is accepted, and nothing has moved by then."""

import threading
from collections.abc import Iterator
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from fast_envs import assert_same_states, make_envs, random_actions
from gymnasium.vector import AutoresetMode

from vla_envs.errors import NotResetError, SceneFormatError
from vla_envs.libero.env import LiberoEnv, make_libero_env
from vla_envs.vector.slot import GoalRecord


@pytest.fixture(scope="module")
def envs() -> Iterator[LiberoEnv]:
    """Two slots in the middle of an episode, with chunks of three."""
    envs = make_envs(2, task_ids=(0, 1), chunk_size=3)
    envs.reset(seed=0)
    envs.step(random_actions(envs, 1)[0])
    yield envs
    envs.close()


def assert_refused(envs: LiberoEnv, call: Any, match: str) -> None:
    """The call raises `ValueError`, and neither states nor what comes next have changed."""
    before, episodes = envs.get_state(), envs._episodes.copy()
    streams = [rng.bit_generator.state for rng in envs._slot_rngs if rng is not None]
    with pytest.raises(ValueError, match=match):
        call()
    assert_same_states(envs.get_state(), before)
    np.testing.assert_array_equal(envs._episodes, episodes)
    assert [rng.bit_generator.state for rng in envs._slot_rngs if rng is not None] == streams


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"suite": "libero_100"}, "lists suite 'libero_100' without any tasks"),
        ({"suite": "libero_moon"}, "unknown suite 'libero_moon': LIBERO has libero_spatial, libero_object"),
        ({"task_ids": [10]}, r"task_ids must be a list of tasks of libero_spatial, which has 0\.\.9, got \[10\]"),
        ({"task_ids": [0, -1]}, "task_ids must be a list"),
        ({"task_ids": [0.0]}, "task_ids must be a list"),
        ({"task_ids": [[0]]}, "task_ids must be a list"),
        ({"task_ids": []}, r"task_ids must be a list .* got \[\]"),
        ({"task_ids": 3}, "task_ids must be a list .* got 3"),
        ({"task_ids": [0], "task_id": 1}, r"give task_ids or task_id, not both: got \[0\] and 1"),
        ({"task_id": [0]}, r"libero_spatial has tasks 0\.\.9, got task_id=\[0\]"),
        ({"cameras": None}, r"cameras must be any of .* got None"),
        ({"cameras": ("topview",)}, r"cameras must be any of \('agentview', 'wrist', 'frontview', .* got \('topview',\)"),
        ({"cameras": "agentview"}, "cameras must be any of"),
        ({"cameras": ("wrist", "wrist")}, "each once"),
        ({"depth": ("wrist",)}, r"depth must name any of the env's cameras \('agentview',\), .* got \('wrist',\)"),
        ({"segmentation": "agentview"}, "segmentation must name any of the env's cameras .* got 'agentview'"),
        (
            {"state_keys": ("robot0_eef",)},
            r"state_keys must be any of \('robot0_joint_pos', .*, 'robot0_gripper_qvel'\), each once, .* got \('robot0_eef',\)",
        ),
        ({"state_keys": "robot0_eef_pos"}, "state_keys must be any of .* got 'robot0_eef_pos'"),
        ({"state_keys": ["robot0_eef_pos"] * 2}, "state_keys must be any of .*, each once"),
        ({"state_keys": [["robot0_eef_pos"]]}, "state_keys must be any of"),
        ({"control": "ik"}, "control must be one of 'osc_delta', 'osc_absolute', 'joint_position', got 'ik'"),
        ({"detail": "medium"}, "detail must be one of 'full', 'fast', got 'medium'"),
        ({"device": "tpu"}, "device must be one of 'auto', 'cuda', 'cpu', got 'tpu'"),
        ({"chunk_size": 0}, "chunk_size must be an integer of at least 1, got 0"),
        ({"num_envs": 0}, "num_envs must be an integer of at least 1, got 0"),
        ({"num_envs": 2.0}, "num_envs must be an integer of at least 1, got 2.0"),
        ({"image_size": 0}, "image_size must be an integer of at least 8, .* got 0"),
        ({"image_size": (32, 4)}, r"image_size must be an integer of at least 8, or two \(height, width\), .* got \(32, 4\)"),
        ({"image_size": {"wrist": 32}}, r"image_size must have a size for each of the env's cameras \('agentview',\), got"),
        ({"max_episode_steps": 0}, r"time limit \(max_episode_steps\) must be an integer of at least 1, got 0"),
        ({"max_episode_steps": 2.5}, r"time limit \(max_episode_steps\) must be an integer of at least 1, got 2.5"),
        ({"settle_steps": -1}, "settle_steps must be an integer of at least 0, got -1"),
        ({"num_threads": 0}, "num_threads must be an integer of at least 1, got 0"),
        ({"render_mode": "human"}, "render_mode must be one of None, 'rgb_array', got 'human'"),
        ({"autoreset_mode": "sometimes"}, "autoreset_mode must be one of 'NextStep', 'SameStep', 'Disabled', got 'sometimes'"),
        ({"scene_dir": "/nonexistent"}, "not a folder of exported scenes"),
    ],
)
def test_an_env_that_cannot_work_is_not_made(arguments: dict[str, Any], match: str):
    threads = set(threading.enumerate())
    with pytest.raises(ValueError, match=match):
        gym.make_vec("Libero-v0", **({"num_envs": 1} | arguments))
    for thread in set(threading.enumerate()) - threads:
        thread.join(timeout=30)
    assert set(threading.enumerate()) <= threads


def test_an_unknown_argument_is_refused_by_name():
    for make in (LiberoEnv, make_libero_env):
        with pytest.raises(TypeError, match="unexpected keyword argument 'speed'"):
            make(speed=2)
    for given, meant in (("chunksize", "chunk_size"), ("detial", "detail"), ("task_idx", "task_id")):
        with pytest.raises(TypeError, match=f"unexpected keyword argument '{given}': did you mean '{meant}'"):
            LiberoEnv(**{given: 3})
    with pytest.raises(TypeError, match=r"'gravity': there are num_envs, suite, task_ids, .*, render_mode$"):
        LiberoEnv(gravity=2)


def test_a_single_env_refuses_to_reset_itself():
    with pytest.raises(ValueError, match="a single env never resets itself: leave out autoreset_mode"):
        gym.make("Libero-v0", autoreset_mode=AutoresetMode.NEXT_STEP)


def test_a_device_number_that_egl_does_not_list_is_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MUJOCO_EGL_DEVICE_ID", "99")
    with pytest.raises(ValueError, match="MUJOCO_EGL_DEVICE_ID must be the place of a device"):
        gym.make("Libero-v0")


def test_a_folder_that_is_no_export_is_a_scene_format_error():
    with pytest.raises(SceneFormatError):
        gym.make_vec("Libero-v0", num_envs=1, scene_dir="/nonexistent")


def test_a_single_env_refuses_a_task_that_its_suite_does_not_have():
    with pytest.raises(ValueError, match=r"libero_goal has tasks 0\.\.9, got task_id=10"):
        gym.make("Libero-Goal-v0", task_id=10)


@pytest.mark.parametrize("shape", [(2, 7), (1, 3, 7), (2, 3, 6), (2, 4, 7), (3, 7), ()])
def test_actions_of_another_shape_are_refused(envs: LiberoEnv, shape: tuple[int, ...]):
    assert_refused(envs, lambda: envs.step(np.zeros(shape)), r"actions must have shape \(2, 3, 7\), got")


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_actions_that_are_not_finite_are_refused(envs: LiberoEnv, bad: float):
    actions = np.zeros((2, 3, 7), np.float32)
    actions[1, 2, 6] = bad
    assert_refused(envs, lambda: envs.step(actions), f"actions must be finite, got {bad}")


@pytest.mark.parametrize("kind", ["bfloat16", "float16", "float64", "int64"])
def test_a_tensor_of_any_type_plays_what_its_numbers_play(kind: str):
    torch = pytest.importorskip("torch")
    actions = torch.zeros(1, 7, dtype=getattr(torch, kind))
    actions[:, :3] = torch.tensor([1.0, -1.0, 0.5])
    states = []
    for given in (actions.double().numpy(), actions, actions.requires_grad_() if actions.is_floating_point() else actions):
        envs = make_envs(1)
        envs.reset(options={"init_state_id": 0})
        envs.step(given)
        states.append(envs.get_state())
        envs.close()
    assert_same_states(states[0], states[1])
    assert_same_states(states[0], states[2])
    single = gym.make("Libero-v0", task_id=0, detail="fast", cameras=())
    single.reset(seed=0, options={"init_state_id": 0})
    single.step(actions[0])
    assert_same_states(states[0], [single.unwrapped.get_state()])
    single.close()


def test_actions_that_are_not_numbers_are_refused(envs: LiberoEnv):
    assert_refused(envs, lambda: envs.step(np.full((2, 3, 7), "left")), "could not convert")


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"task": 0}, "unknown reset option 'task': this env takes reset_mask, task_id, init_state_id"),
        ({"task_id": 2}, r"task_id must be one of 0\.\.1, got 2 for slot 0"),
        ({"task_id": [0, -1]}, r"task_id must be one of 0\.\.1, got -1 for slot 1"),
        ({"task_id": [0, 1, 0]}, r"'task_id' must have shape \(\) or \(2,\), got \(3,\)"),
        ({"task_id": 0.0}, "'task_id' must be integers, got float64"),
        ({"task_id": [0, None]}, "'task_id' must be integers, got object"),
        ({"init_state_id": [True, False]}, "'init_state_id' must be integers, got bool"),
        ({"init_state_id": 50}, r"init_state_id of task 0 must be in 0\.\.49, got 50"),
        ({"init_state_id": -1}, r"init_state_id of task 0 must be in 0\.\.49, got -1"),
        ({"task_id": 1, "init_state_id": [0, 99]}, r"init_state_id of task 1 must be in 0\.\.49, got 99"),
        ({"reset_mask": [1, 0]}, r"reset_mask must be \(2,\) bool, got \(2,\) int64"),
        ({"reset_mask": np.ones(3, bool)}, r"reset_mask must be \(2,\) bool, got \(3,\) bool"),
        ({"reset_mask": [False, False]}, "reset_mask must be True for at least one slot, got False for all"),
        ({"reset_mask": True}, r"reset_mask must be \(2,\) bool, got \(\) bool"),
    ],
)
def test_reset_options_that_cannot_be_met_are_refused(envs: LiberoEnv, options: dict[str, Any], match: str):
    assert_refused(envs, lambda: envs.reset(seed=1, options=options), match)


@pytest.mark.parametrize("seed", [-1, [1], [1, 2, 3], [1, -2], [1, 0.5], 3.0, True, [1, True], "12", np.array(3)])
def test_seeds_that_are_not_natural_numbers_one_or_n_are_refused(envs: LiberoEnv, seed: Any):
    assert_refused(envs, lambda: envs.reset(seed=seed), "seed")


def test_states_of_another_shape_or_not_finite_are_refused(envs: LiberoEnv):
    states = list(envs.get_state())
    assert_refused(envs, lambda: envs.set_state(states[:1]), "set_state takes 2 states, got 1")
    assert_refused(envs, lambda: envs.set_state([states[0], states[1][:-1]]), "the state of slot 1 must have shape")
    states[1] = states[1].copy()
    states[1][5] = np.nan
    assert_refused(envs, lambda: envs.set_state(states), "the state of slot 1 is not finite")


def test_what_is_asked_of_slots_outside_the_mask_does_not_matter():
    envs = make_envs(2, task_ids=(0, 1), autoreset_mode=AutoresetMode.DISABLED)
    envs.reset(seed=0)
    _, info = envs.reset(options={"reset_mask": np.array([True, False]), "task_id": [1, 77], "init_state_id": [2, -5]})
    assert info["task_id"].tolist() == [1, 1]
    envs.close()


def test_a_seed_given_with_options_is_checked_against_the_task_that_it_leads_to():
    """After one episode the slot would play task 1 next; seeded anew, it plays task 0 again."""
    envs = make_envs(1, task_ids=(0, 1), settle_steps=0)
    envs.reset(seed=0)
    envs.num_init_states[1] = 1
    _, info = envs.reset(seed=0, options={"init_state_id": 30})
    assert (info["task_id"][0], info["init_state_id"][0]) == (0, 30)
    with pytest.raises(ValueError, match=r"init_state_id of task 1 must be in 0\.\.0, got 30"):
        envs.reset(options={"init_state_id": 30})
    envs.close()


def test_nothing_but_reset_and_close_works_before_the_first_reset():
    envs = make_envs(2, render_mode="rgb_array", cameras=("agentview",))
    for call in (lambda: envs.step(np.zeros((2, 7))), envs.get_state, lambda: envs.set_state([]), envs.render):
        with pytest.raises(NotResetError, match="slot 0 was never reset"):
            call()
    with pytest.raises(NotResetError, match="slot 1 was never reset"):
        envs.reset(options={"reset_mask": np.array([True, False])})
    envs.close()
    env = make_libero_env(task_id=0, detail="fast", cameras=())
    with pytest.raises(NotResetError, match="never reset"):
        env.step(np.zeros(7))
    env.close()


def test_nothing_but_close_works_after_close():
    envs = make_envs(1, render_mode="rgb_array", cameras=("agentview",))
    envs.reset(seed=0)
    envs.close()
    calls = (envs.reset, lambda: envs.step(np.zeros((1, 7))), envs.get_state, lambda: envs.set_state([]), envs.render)
    for call in calls:
        with pytest.raises(NotResetError, match="closed: make a new one"):
            call()
    envs.close()


def test_an_error_in_the_middle_of_a_step_asks_for_a_reset_of_the_slots_it_left_unknown(monkeypatch: pytest.MonkeyPatch):
    envs = make_envs(2, chunk_size=2, autoreset_mode=AutoresetMode.DISABLED)
    envs.reset(seed=0)

    def fail(record: GoalRecord, num_steps: int) -> None:
        raise RuntimeError("the judge has gone home")

    with monkeypatch.context() as patched:
        patched.setattr(envs._scenes[0], "judge", fail)
        with pytest.raises(RuntimeError, match="gone home"):
            envs.step(np.zeros((2, 2, 7)))
    with pytest.raises(NotResetError, match="or an error ended its episode: reset it first"):
        envs.step(np.zeros((2, 2, 7)))
    envs.reset(seed=0)
    assert envs.step(np.zeros((2, 2, 7)))[4]["num_steps"].tolist() == [2, 2]
    envs.close()


def test_a_single_env_names_the_shape_of_one_action():
    env = make_libero_env(task_id=0, detail="fast", cameras=(), chunk_size=2)
    env.reset(seed=0)
    with pytest.raises(ValueError, match=r"the action must have shape \(2, 7\), got \(7,\)"):
        env.step(np.zeros(7))
    env.close()
