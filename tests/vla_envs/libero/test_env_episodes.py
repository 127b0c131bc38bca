"""How episodes of LiberoEnv begin, go on and end: starts, options, chunks, rewards, time limits."""

import gymnasium as gym
import numpy as np
import pytest
from fast_envs import (
    BOWL_IN_DRAWER,
    BOWL_ON_PLATE,
    STILL,
    STOVE_AND_POT,
    almost_done,
    assert_same_states,
    loaded_scene,
    make_envs,
    play,
    random_actions,
    still,
)
from gymnasium.vector import AutoresetMode

from vla_envs.libero.env import LiberoEnv
from vla_envs.libero.goals import JointPast

pytestmark = pytest.mark.usefixtures("opengl")


def starts(envs: LiberoEnv, num_resets: int) -> list[tuple[int, ...]]:
    """The initial states that resets give."""
    return [tuple(envs.reset()[1]["init_state_id"]) for _ in range(num_resets)]


# --- starts


def test_the_same_seed_gives_the_same_starts_and_another_gives_others():
    envs, others = make_envs(3, settle_steps=0), make_envs(3, settle_steps=0)
    envs.reset(seed=5)
    others.reset(seed=5)
    assert_same_states(envs.get_state(), others.get_state())
    order = starts(envs, 6)
    assert order == starts(others, 6)
    assert len(set(order)) > 1
    assert any(len(set(start)) > 1 for start in order)
    others.reset(seed=6)
    assert order != starts(others, 6)
    envs.close()
    others.close()


def test_a_slot_with_a_seed_of_its_own_does_not_depend_on_the_others():
    envs, wider = make_envs(2, settle_steps=0), make_envs(3, settle_steps=0)
    envs.reset(seed=[11, 12])
    wider.reset(seed=[12, 13, 11])
    for mine, theirs in zip(starts(envs, 5), starts(wider, 5), strict=True):
        assert mine == (theirs[2], theirs[0])
    envs.close()
    wider.close()


def test_a_reset_without_a_seed_goes_on_and_a_seed_for_one_slot_starts_only_its_stream_again():
    envs = make_envs(2, settle_steps=0)
    first = envs.reset(seed=3)[1]["init_state_id"]
    second = envs.reset()[1]["init_state_id"]
    envs.reset(seed=3)
    assert envs.reset()[1]["init_state_id"].tolist() == second.tolist()
    mixed = envs.reset(seed=[None, 9])[1]["init_state_id"]
    fresh = make_envs(2, settle_steps=0)
    fresh.reset(seed=3)
    third = starts(fresh, 2)[1]
    assert mixed[0] == third[0]
    assert mixed[1] == fresh.reset(seed=[8, 9])[1]["init_state_id"][1]
    assert first.shape == (2,)
    envs.close()
    fresh.close()


def test_unseeded_envs_start_differently():
    seen = set()
    for _ in range(3):
        envs = make_envs(4, settle_steps=0)
        seen.add(tuple(map(tuple, starts(envs, 3))))
        envs.close()
    assert len(seen) > 1


def test_episodes_begin_in_the_benchmarks_stored_states():
    envs = make_envs(2, settle_steps=0)
    stored = loaded_scene(*BOWL_ON_PLATE).scene.init_states
    _, info = envs.reset(seed=0)
    assert_same_states(envs.get_state(), [stored[state_id] for state_id in info["init_state_id"]])
    envs.reset(options={"init_state_id": [4, 49]})
    assert_same_states(envs.get_state(), [stored[4], stored[49]])
    envs.close()


def test_slots_take_the_tasks_in_turn():
    for num_envs, expected in ((1, [(1,), (0,), (1,)]), (3, [(1, 0, 1), (0, 1, 0), (1, 0, 1)])):
        envs = make_envs(num_envs, task_ids=(1, 0), settle_steps=0)
        order = [tuple(envs.reset(seed=0 if episode == 0 else None)[1]["task_id"]) for episode in range(3)]
        assert order == expected
        envs.close()


def test_a_task_that_is_listed_twice_has_two_turns():
    for num_envs, expected in ((4, [(0, 0, 1, 1), (0, 0, 1, 1)]), (3, [(0, 0, 1), (1, 0, 0)]), (1, [(0,), (0,), (1,), (1,)])):
        envs = make_envs(num_envs, task_ids=(0, 0, 1, 1), settle_steps=0)
        assert envs.task_ids == tuple(envs.instructions) == (0, 1)
        order = [tuple(envs.reset(seed=0 if episode == 0 else None)[1]["task_id"]) for episode in range(len(expected))]
        assert order == expected
        envs.close()


def test_one_vector_env_plays_several_tasks_each_by_its_own_rules():
    envs = make_envs(3, task_ids=(0, 1), cameras=("agentview",))
    observation, info = envs.reset(seed=0, options={"task_id": [1, 0, 1], "init_state_id": 3})
    assert info["task_id"].tolist() == [1, 0, 1]
    assert info["init_state_id"].tolist() == [3, 3, 3]
    assert observation["instruction"] == tuple(envs.instructions[task] for task in (1, 0, 1))
    np.testing.assert_array_equal(observation["image"][0], observation["image"][2])
    assert (observation["image"][0] != observation["image"][1]).any()
    states = envs.get_state()
    assert_same_states(states[:1], states[2:])
    near = almost_done(*BOWL_ON_PLATE, states[1])
    envs.set_state([states[0], near, states[2]])
    for _ in range(5):
        _, reward, terminated, _, _ = envs.step(still(envs))
        if terminated.any():
            break
    assert terminated.tolist() == [False, True, False]
    assert reward.tolist() == [0, 1, 0]
    envs.close()


def test_a_single_value_of_an_option_goes_to_all_slots_of_the_mask_and_others_are_untouched():
    envs = make_envs(3, task_ids=(0, 1), chunk_size=2, autoreset_mode=AutoresetMode.DISABLED, cameras=("agentview",))
    envs.reset(seed=0, options={"task_id": 0, "init_state_id": [1, 2, 3]})
    observation, *_ = envs.step(random_actions(envs, 1)[0])
    before = envs.get_state()
    mask = np.array([False, True, False])
    after, info = envs.reset(options={"reset_mask": mask, "task_id": 1, "init_state_id": 8})
    assert info["task_id"].tolist() == [0, 1, 0]
    assert info["init_state_id"].tolist() == [1, 8, 3]
    for slot in (0, 2):
        assert_same_states(envs.get_state()[slot : slot + 1], before[slot : slot + 1])
        for key, value in observation.items():
            np.testing.assert_array_equal(value[slot], after[key][slot])
    assert (observation["image"][1] != after["image"][1]).any()
    envs.close()


def test_resetting_others_does_not_change_what_a_slot_does_next():
    actions = None
    finals = []
    for reset_others in (False, True):
        envs = make_envs(2, task_ids=(0, 1), chunk_size=4)
        envs.reset(seed=1, options={"task_id": 0})
        actions = random_actions(envs, 3)
        envs.step(actions[0])
        if reset_others:
            envs.reset(options={"reset_mask": np.array([False, True]), "task_id": 1})
        finals.append(play(envs, actions[1:])[-1][0])
        envs.close()
    np.testing.assert_array_equal(*finals)


def test_settling_is_liberos_ten_steps_without_motion():
    settled, raw = make_envs(2, cameras=("agentview",)), make_envs(2, settle_steps=0, cameras=("agentview",))
    options = {"init_state_id": [0, 17]}
    ready, _ = settled.reset(options=options)
    raw.reset(options=options)
    for _ in range(10):
        by_hand, *_ = raw.step(still(raw))
    assert_same_states(settled.get_state(), raw.get_state())
    for key in ("image", "state"):
        np.testing.assert_array_equal(ready[key], by_hand[key])
    actions = random_actions(settled, 3)
    assert_same_states(play(settled, actions)[-1], play(raw, actions)[-1])
    settled.close()
    raw.close()


# --- chunks


def test_a_step_without_chunks_plays_one_action():
    envs = make_envs(2)
    envs.reset(seed=0)
    time_before = envs.get_state()[0][0]
    *_, info = envs.step(still(envs))
    assert info["num_steps"].tolist() == [1, 1]
    assert envs.get_state()[0][0] == pytest.approx(time_before + 0.05)
    envs.close()


def test_a_chunk_equals_its_actions_one_by_one():
    chunked = make_envs(2, chunk_size=4, cameras=("agentview",))
    stepped = make_envs(2, cameras=("agentview",))
    chunked.reset(seed=0)
    stepped.reset(seed=0)
    for chunk in random_actions(chunked, 2):
        together, *_, info = chunked.step(chunk)
        for index in range(4):
            singly, *_ = stepped.step(chunk[:, index])
        assert info["num_steps"].tolist() == [4, 4]
        assert_same_states(chunked.get_state(), stepped.get_state())
        for key in ("image", "state"):
            np.testing.assert_array_equal(together[key], singly[key])
    chunked.close()
    stepped.close()


@pytest.mark.parametrize("task", [BOWL_ON_PLATE, STOVE_AND_POT], ids=lambda task: task[0])
def test_a_chunk_stops_on_the_step_that_reaches_the_goal_in_exactly_that_state(task: tuple[str, int]):
    suite, task_id = task
    chunked = make_envs(1, suite, (task_id,), chunk_size=16, cameras=("agentview",))
    stepped = make_envs(1, suite, (task_id,), cameras=("agentview",))
    for envs in (chunked, stepped):
        envs.reset(options={"init_state_id": 2})
        envs.set_state([almost_done(suite, task_id, envs.get_state()[0], drop_m=0.1 if task == BOWL_ON_PLATE else 0.03)])
    actions = 0.2 * random_actions(chunked, 1)[0]
    together, reward, terminated, truncated, info = chunked.step(actions)
    for num_steps in range(1, 17):
        singly, _, done, _, _ = stepped.step(actions[:, num_steps - 1])
        if done[0]:
            break
    assert 1 < num_steps < 16
    assert info["num_steps"].tolist() == [num_steps]
    assert (reward.tolist(), terminated.tolist(), truncated.tolist()) == ([1], [True], [False])
    assert info["success"].tolist() == [True]
    assert_same_states(chunked.get_state(), stepped.get_state())
    for key in ("image", "state"):
        np.testing.assert_array_equal(together[key], singly[key])
    chunked.close()
    stepped.close()


def test_a_goal_that_holds_only_in_passing_ends_the_chunk_there():
    """The pot comes down on the stove while the knob is turning off: the goal holds for a few control steps of the chunk."""
    suite, task_id = STOVE_AND_POT
    scene = loaded_scene(suite, task_id)
    model, knob = scene.model, scene.scene.goal.predicates[0]
    assert isinstance(knob, JointPast)
    dof = model.jnt_dofadr[np.flatnonzero(model.jnt_qposadr == knob.qpos_addresses[0])[0]]
    envs = make_envs(1, suite, (task_id,), chunk_size=16)
    envs.reset(options={"init_state_id": 0})
    passing = almost_done(suite, task_id, envs.get_state()[0], drop_m=0.07)
    passing[1 + model.nq + dof] = -0.5
    player = scene.new_player()
    player.begin(passing)
    player.play(np.tile(STILL, (16, 1)), 16)
    verdicts = scene.judge(player.record, 16)
    assert verdicts.any()
    assert not verdicts[0]
    assert not verdicts[-1]
    envs.set_state([passing])
    *_, info = envs.step(still(envs))
    assert info["success"].all()
    assert info["num_steps"][0] == np.flatnonzero(verdicts)[0] + 1
    envs.close()


def test_an_episode_is_truncated_at_the_time_limit_inside_a_chunk():
    envs = make_envs(2, chunk_size=4, max_episode_steps=6, autoreset_mode=AutoresetMode.DISABLED)
    envs.reset(seed=0)
    actions = random_actions(envs, 2)
    _, _, _, truncated, info = envs.step(actions[0])
    assert truncated.tolist() == [False, False]
    assert "episode_length" not in info
    _, reward, terminated, truncated, info = envs.step(actions[1])
    assert truncated.tolist() == [True, True]
    assert terminated.tolist() == [False, False]
    assert reward.tolist() == [0, 0]
    assert info["num_steps"].tolist() == [2, 2]
    assert info["episode_length"].tolist() == [6, 6]
    assert "fault" not in info
    stepped = make_envs(2)
    stepped.reset(seed=0)
    for index in range(6):
        stepped.step(np.concatenate(list(actions), axis=1)[:, index])
    assert_same_states(envs.get_state(), stepped.get_state())
    envs.close()
    stepped.close()


def test_success_on_the_last_step_is_termination_and_not_truncation():
    envs = make_envs(1, chunk_size=8, max_episode_steps=3)
    envs.reset(options={"init_state_id": 0})
    envs.set_state([almost_done(*BOWL_ON_PLATE, envs.get_state()[0], drop_m=0.1)])
    _, reward, terminated, truncated, info = envs.step(still(envs))
    assert info["num_steps"].tolist() == [3]
    assert (reward.tolist(), terminated.tolist(), truncated.tolist()) == ([1], [True], [False])
    envs.close()


def test_the_suites_time_limit_does_not_count_settling():
    envs = make_envs(1, chunk_size=230)
    envs.reset(seed=0)
    _, _, _, truncated, info = envs.step(still(envs))
    assert truncated.all()
    assert info["num_steps"].tolist() == [220]
    envs.close()


def test_the_drawer_task_succeeds_where_its_bowl_lies_in_the_drawer():
    suite, task_id = BOWL_IN_DRAWER
    envs = make_envs(1, suite, (task_id,))
    envs.reset(seed=0)
    assert not envs.step(still(envs))[2].any()
    envs.set_state([almost_done(suite, task_id, envs.get_state()[0])])
    assert envs.step(still(envs))[2].all()
    envs.close()


# --- time limits of single envs


def test_a_time_limit_of_gymnasium_make_counts_calls_of_step():
    """Gymnasium keeps it to itself."""
    env = gym.make("Libero-v0", task_id=0, detail="fast", cameras=(), chunk_size=3, max_episode_steps=2)
    env.reset(seed=0)
    chunk = np.broadcast_to(STILL, (3, 7)).astype(np.float32)
    assert [env.step(chunk)[3] for _ in range(2)] == [False, True]
    env.close()


@pytest.mark.parametrize(("chunk_size", "time_limit"), [(8, 16), (230, 221)])
def test_the_time_limit_of_a_single_env_counts_control_steps_and_replaces_the_suites(chunk_size: int, time_limit: int):
    env = gym.make("Libero-v0", task_id=0, detail="fast", cameras=(), chunk_size=chunk_size, time_limit=time_limit)
    assert env.unwrapped.max_episode_steps == time_limit
    env.reset(seed=0)
    truncated, num_steps = False, 0
    while not truncated:
        *_, truncated, info = env.step(np.broadcast_to(STILL, (chunk_size, 7)).astype(np.float32))
        num_steps += info["num_steps"]
    assert num_steps == time_limit
    env.close()
