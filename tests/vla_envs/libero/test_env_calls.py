"""`call`, `get_attr`, `set_attr` and copies of LiberoEnv, as Gymnasium's SyncVectorEnv of single envs has them."""

import copy
import pickle
from collections.abc import Callable, Iterator
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from fast_envs import BOWL_ON_PLATE, OTHER_BOWL_ON_PLATE, assert_same_states, loaded_scene, make_envs, still
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from vla_envs.libero.env import LiberoEnv

COPY: list[Callable[[Any], Any]] = [copy.deepcopy, lambda env: pickle.loads(pickle.dumps(env))]


@pytest.fixture
def envs() -> Iterator[LiberoEnv]:
    """Two slots of different tasks, reset."""
    envs = make_envs(2, task_ids=(0, 1))
    envs.reset(options={"init_state_id": [3, 4]})
    yield envs
    envs.close()


def test_calls_return_what_gymnasiums_own_vector_env_returns(opengl: None):
    """LeRobot's evaluation asks these."""
    loaded_scene(*OTHER_BOWL_ON_PLATE)
    options = {"cameras": ("agentview",), "render_mode": "rgb_array"}
    ours = make_envs(2, task_ids=(0, 1), **options)

    def make(task_id: int) -> Callable[[], gym.Env]:
        return lambda: gym.make("Libero-v0", task_id=task_id, detail="fast", image_size=32, **options)

    theirs = SyncVectorEnv([make(0), make(1)])
    for vector in (ours, theirs):
        vector.reset(options={"init_state_id": 7})
    for name in ("task_description", "task", "instruction", "task_id", "init_state_id", "_max_episode_steps", "suite"):
        assert ours.call(name) == ours.get_attr(name) == theirs.call(name), name
    assert ours.call("task_description") == tuple(ours.instructions.values())
    for name in ("render", "get_state"):
        for mine, expected in zip(ours.call(name), theirs.call(name), strict=True):
            np.testing.assert_array_equal(mine, expected)
    for vector in (ours, theirs):
        vector.set_attr("max_episode_steps", 9)
        assert vector.call("_max_episode_steps") == (9, 9)
        with pytest.raises(AttributeError, match="no_such_name"):
            vector.call("no_such_name")
        vector.close()


def test_methods_that_take_a_slot_are_called_for_each(envs: LiberoEnv):
    views = envs.call("privileged")
    assert [view.init_state_id for view in views] == [3, 4]
    assert [expert.act().shape for expert in envs.call("make_expert", noise=0.1, seed=0)] == [(7,), (7,)]
    assert make_envs(1).call("render") == (None,)


@pytest.mark.parametrize("name", ["reset", "step", "set_state"])
def test_what_moves_all_slots_is_not_called_for_each(envs: LiberoEnv, name: str):
    states = envs.get_state()
    with pytest.raises(AttributeError, match=rf"'{name}' cannot be called for each slot: .* call {name}\(\) itself"):
        envs.call(name, still(envs))
    assert_same_states(envs.get_state(), states)


@pytest.mark.parametrize(
    ("name", "values", "error", "message"),
    [
        ("task_id", [1, 0], AttributeError, "'task_id' cannot be set; reset takes it, as options"),
        ("suite", "libero_10", AttributeError, "'suite' cannot be set: set_attr takes max_episode_steps, render_every"),
        ("no_such_name", 1, AttributeError, "no attribute 'no_such_name'"),
        ("max_episode_steps", [5], ValueError, "set_attr takes one value or 2, got 1"),
        ("_max_episode_steps", [5, 6], ValueError, r"all slots have the same _max_episode_steps, got \[5, 6\]"),
        ("max_episode_steps", 0, ValueError, "max_episode_steps must be an integer of at least 1, got 0"),
    ],
)
def test_what_cannot_be_set_is_refused(envs: LiberoEnv, name: str, values: Any, error: type[Exception], message: str):
    with pytest.raises(error, match=message):
        envs.set_attr(name, values)
    assert envs.max_episode_steps == 220


def test_a_time_limit_that_has_passed_when_it_is_set_ends_the_episode_without_a_step(envs: LiberoEnv):
    for _ in range(2):
        envs.step(still(envs))
    envs.set_attr("max_episode_steps", [1, 1])
    *_, truncated, info = envs.step(still(envs))
    assert (truncated.tolist(), info["num_steps"].tolist(), info["episode_length"].tolist()) == ([True] * 2, [0] * 2, [2] * 2)


def test_before_the_first_reset_the_task_is_known_where_there_is_only_one():
    envs, one = make_envs(2, task_ids=(0, 1)), make_envs(1)
    assert envs.call("task_description") == ("", "")
    assert envs.call("task_id") == (-1, -1)
    assert one.call("task_description") == (one.instructions[0],)


@pytest.mark.parametrize("mode", list(AutoresetMode), ids=lambda mode: mode.name)
def test_success_is_told_under_lerobots_name_too(mode: AutoresetMode):
    envs = make_envs(2, max_episode_steps=2, autoreset_mode=mode)
    envs.reset(seed=0)
    for _ in range(2):
        *_, info = envs.step(still(envs))
    told = info["final_info"] if mode == AutoresetMode.SAME_STEP else info
    for key in ("success", "is_success"):
        assert told[key].tolist() == [False, False]
        assert told[f"_{key}"].tolist() == [True, True]
    envs.close()


@pytest.mark.parametrize("copied", COPY, ids=["deepcopy", "pickle"])
def test_a_copy_of_an_env_that_was_not_reset_is_an_env_of_its_own_made_by_the_same_arguments(copied: Callable[[Any], Any]):
    envs = make_envs(2, task_ids=(0, 1), chunk_size=2, state_keys=["robot0_joint_pos"])
    envs.set_attr("max_episode_steps", 7)
    twin = copied(envs)
    assert type(twin) is LiberoEnv
    assert (twin.spec, twin.task_ids, twin.max_episode_steps) == (envs.spec, (0, 1), 7)
    assert (twin.observation_space, twin.action_space) == (envs.observation_space, envs.action_space)
    for one in (envs, twin):
        one.reset(seed=0)
    assert_same_states(envs.get_state(), twin.get_state())
    twin.step(still(twin))
    assert envs.get_state()[0][0] < twin.get_state()[0][0]
    twin.close()
    envs.step(still(envs))
    envs.close()


@pytest.mark.parametrize("copied", COPY, ids=["deepcopy", "pickle"])
@pytest.mark.parametrize("env_id", ["Libero-v0", "Isaac-v0"])
def test_a_single_env_is_copied_with_its_wrappers(copied: Callable[[Any], Any], env_id: str):
    loaded_scene(*BOWL_ON_PLATE)
    env = gym.make(env_id, task_id=0, detail="fast", cameras=(), time_limit=5)
    twin = copied(env)
    assert twin.spec == env.spec
    assert twin.unwrapped.spec == env.unwrapped.spec
    env.close()
    observation, _ = twin.reset(seed=0)
    assert observation in twin.observation_space
    assert twin.unwrapped.max_episode_steps == 5
    twin.close()


@pytest.mark.parametrize("copied", COPY, ids=["deepcopy", "pickle"])
def test_an_env_that_was_reset_or_closed_says_why_it_is_not_copied(envs: LiberoEnv, copied: Callable[[Any], Any]):
    with pytest.raises(RuntimeError, match="an env that was reset cannot be copied or pickled"):
        copied(envs)
    envs.close()
    with pytest.raises(RuntimeError, match="closed: make a new one"):
        copied(envs)
