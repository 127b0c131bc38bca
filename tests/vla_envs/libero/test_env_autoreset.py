"""What LiberoEnv does with a slot whose episode is over, in each of Gymnasium's autoreset modes, and what its infos say."""

import numpy as np
import pytest
from fast_envs import BOWL_ON_PLATE, almost_done, assert_same_states, make_envs, random_actions, still
from gymnasium.vector import AutoresetMode

pytestmark = pytest.mark.usefixtures("opengl")


def test_next_step_begins_the_next_episode_with_the_next_call_and_ignores_its_actions():
    envs = make_envs(2, chunk_size=2, max_episode_steps=3)
    assert envs.metadata["autoreset_mode"] == AutoresetMode.NEXT_STEP
    envs.reset(seed=0, options={"reset_mask": np.ones(2, bool)})
    reference = make_envs(2, chunk_size=2)
    reference.reset(seed=0)
    actions = random_actions(envs, 4)
    envs.step(actions[0])
    _, _, _, truncated, info = envs.step(actions[1])
    assert truncated.all()
    ended_in = envs.get_state()
    observation, reward, terminated, truncated, info = envs.step(actions[2])
    begun, expected = reference.reset()
    assert info["init_state_id"].tolist() == expected["init_state_id"].tolist()
    assert_same_states(envs.get_state(), reference.get_state())
    np.testing.assert_array_equal(observation["state"], begun["state"])
    assert (ended_in[0] != envs.get_state()[0]).any()
    assert reward.tolist() == [0, 0]
    assert not (terminated | truncated).any()
    assert info["num_steps"].tolist() == [0, 0]
    assert "final_obs" not in info
    envs.step(actions[3])
    reference.step(actions[3])
    assert_same_states(envs.get_state(), reference.get_state())
    envs.close()
    reference.close()


def test_same_step_returns_the_next_episode_and_keeps_the_end_of_the_last():
    envs = make_envs(2, chunk_size=2, max_episode_steps=3, autoreset_mode=AutoresetMode.SAME_STEP, cameras=("agentview",))
    reference = make_envs(2, chunk_size=2, max_episode_steps=3, autoreset_mode=AutoresetMode.DISABLED, cameras=("agentview",))
    first = envs.reset(seed=0)[1]
    reference.reset(seed=0)
    for action in random_actions(envs, 2):
        observation, _, _, truncated, info = envs.step(action)
        ending, *_ = reference.step(action)
    assert truncated.all()
    begun, expected = reference.reset()
    for key in ("image", "state"):
        np.testing.assert_array_equal(observation[key], begun[key])
        for slot in range(2):
            np.testing.assert_array_equal(info["final_obs"][slot][key], ending[key][slot])
    assert info["init_state_id"].tolist() == expected["init_state_id"].tolist()
    assert info["final_info"]["init_state_id"].tolist() == first["init_state_id"].tolist()
    assert info["final_info"]["episode_length"].tolist() == [3, 3]
    assert info["final_info"]["num_steps"].tolist() == [1, 1]
    assert info["_num_steps"].tolist() == info["_success"].tolist() == [False, False]
    assert info["_final_obs"].tolist() == info["_final_info"].tolist() == [True, True]
    envs.step(random_actions(envs, 1, seed=1)[0])
    envs.close()
    reference.close()


def test_disabled_leaves_a_finished_slot_as_it_is_until_it_is_reset():
    envs = make_envs(2, chunk_size=2, max_episode_steps=4, autoreset_mode=AutoresetMode.DISABLED)
    envs.reset(seed=0)
    actions = random_actions(envs, 6)
    envs.step(actions[0])
    envs.reset(options={"reset_mask": np.array([False, True])})
    _, _, _, truncated, info = envs.step(actions[1])
    assert truncated.tolist() == [True, False]
    assert info["_episode_length"].tolist() == [True, False]
    ended_in = envs.get_state()[0]
    _, reward, terminated, truncated, info = envs.step(actions[2])
    assert info["num_steps"].tolist() == [0, 2]
    assert truncated.tolist() == [False, True]
    assert (reward[0], terminated[0], info["success"][0]) == (0, False, False)
    np.testing.assert_array_equal(envs.get_state()[0], ended_in)
    *_, info = envs.step(actions[3])
    assert info["num_steps"].tolist() == [0, 0]
    envs.reset(options={"reset_mask": np.array([True, False])})
    *_, info = envs.step(actions[4])
    assert info["num_steps"].tolist() == [2, 0]
    envs.close()


def test_episode_statistics_are_those_of_the_episode_that_ended():
    envs = make_envs(2, chunk_size=8, max_episode_steps=10)
    envs.reset(options={"init_state_id": 0})
    envs.set_state([almost_done(*BOWL_ON_PLATE, envs.get_state()[0], drop_m=0.1), envs.get_state()[1]])
    _, reward, _, _, info = envs.step(still(envs))
    assert reward.tolist() == [1, 0]
    for name in ("episode_return", "episode_length", "episode_seconds"):
        assert info[f"_{name}"].tolist() == [True, False]
        assert info[name][1] == 0
    assert (info["episode_return"][0], info["episode_length"][0]) == (1, 3)
    assert info["episode_seconds"][0] > 0
    _, _, _, truncated, info = envs.step(still(envs))
    assert truncated.tolist() == [False, True]
    assert (info["episode_return"][1], info["episode_length"][1]) == (0, 10)
    assert info["num_steps"].tolist() == [0, 2]
    _, _, _, truncated, info = envs.step(still(envs))
    assert not truncated.any()
    assert info["num_steps"].tolist() == [8, 0]
    envs.close()


def test_every_key_of_an_info_has_a_mask():
    envs = make_envs(2, max_episode_steps=1, autoreset_mode=AutoresetMode.SAME_STEP)
    _, reset_info = envs.reset(seed=0)
    *_, step_info = envs.step(still(envs))
    for info in (reset_info, step_info, step_info["final_info"]):
        keys = {key for key in info if not key.startswith("_")}
        assert keys
        assert {f"_{key}" for key in keys} == set(info) - keys
        for key in keys:
            assert info[f"_{key}"].shape == (2,)
            assert info[f"_{key}"].dtype == bool
    envs.close()
