"""Episodes are exact: threads, neighbours, copies and replays change no bit; what diverges harms nobody else."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fast_envs import (
    BOWL_ON_PLATE,
    OTHER_BOWL_ON_PLATE,
    assert_same_states,
    loaded_scene,
    make_envs,
    play,
    random_actions,
)
from gymnasium.vector import AutoresetMode

from vla_envs.libero.env import LiberoEnv
from vla_envs.vector.cameras import drawn_cameras
from vla_envs.vector.mujoco_engine import MujocoEngine
from vla_envs.vector.start import Start

HUGE_SPEED = 1e12


pytestmark = pytest.mark.usefixtures("opengl")


@pytest.fixture(autouse=True)
def mujocos_log_goes_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """MuJoCo writes a file into the working directory when a simulation diverges."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def engine() -> Iterator[MujocoEngine]:
    engine = MujocoEngine(2, cameras=drawn_cameras(("agentview",), image_size=24))
    yield engine
    engine.close()


def episode(actions: np.ndarray, **arguments: Any) -> list[tuple[np.ndarray, ...]]:
    envs = make_envs(actions.shape[1], task_ids=(0, 1), chunk_size=actions.shape[2], max_episode_steps=8, **arguments)
    envs.reset(seed=4)
    states = play(envs, actions)
    envs.close()
    return states


# --- determinism


def test_the_number_of_threads_changes_no_bit():
    actions = np.random.default_rng(0).uniform(-1, 1, (4, 4, 3, 7))
    alone = episode(actions, num_threads=1)
    for num_threads in (2, 4, None):
        for mine, theirs in zip(alone, episode(actions, num_threads=num_threads), strict=True):
            assert_same_states(mine, theirs)


def test_neighbours_change_no_bit():
    """A slot plays the same whether it is alone, beside copies of itself, or beside other tasks that start elsewhere."""
    actions = np.random.default_rng(1).uniform(-1, 1, (2, 4, 5, 7))
    observations, states = [], []
    for num_envs, slot, tasks in ((1, 0, [0]), (3, 2, [0, 0, 0]), (4, 1, [1, 0, 1, 1])):
        envs = make_envs(num_envs, task_ids=(0, 1), chunk_size=5, cameras=("agentview",))
        starts = np.arange(num_envs) + 20
        starts[slot] = 6
        envs.reset(options={"task_id": tasks, "init_state_id": starts})
        for action in actions:
            mixed = action[:num_envs].copy()
            mixed[slot] = action[3]
            observation, *_ = envs.step(mixed)
        observations.append({key: observation[key][slot] for key in ("image", "state")})
        states.append(envs.get_state()[slot])
        envs.close()
    for observation, state in zip(observations[1:], states[1:], strict=True):
        np.testing.assert_array_equal(state, states[0])
        for key, value in observation.items():
            np.testing.assert_array_equal(value, observations[0][key])


def test_a_start_that_was_settled_before_equals_a_fresh_one():
    envs = make_envs(2, cameras=("agentview",), chunk_size=4)
    actions = random_actions(envs, 2)
    outcomes = []
    for fresh in (True, False, True):
        if fresh:
            envs._settled.clear()
        assert (len(envs._settled) == 0) == fresh
        begun, _ = envs.reset(options={"init_state_id": [5, 9]})
        settled = envs.get_state()
        later = [envs.step(action)[0] for action in actions]
        outcomes.append((begun, settled, later, envs.get_state()))
    for begun, settled, later, last in outcomes[1:]:
        assert_same_states(settled, outcomes[0][1])
        assert_same_states(last, outcomes[0][3])
        for mine, theirs in zip((begun, *later), (outcomes[0][0], *outcomes[0][2]), strict=True):
            for key in ("image", "state"):
                np.testing.assert_array_equal(mine[key], theirs[key])
    envs.close()


def test_what_happened_in_a_slot_before_does_not_matter():
    envs = make_envs(1, task_ids=(0, 1), chunk_size=4)
    actions = random_actions(envs, 2)
    endings = []
    for played_before in (None, 0, 1):
        if played_before is not None:
            envs.reset(options={"task_id": played_before, "init_state_id": 30})
            play(envs, random_actions(envs, 2, seed=9))
        envs.reset(options={"task_id": 0, "init_state_id": 3})
        endings.append(play(envs, actions)[-1])
    assert_same_states(endings[0] * 2, endings[1] + endings[2])
    envs.close()


# --- states


def test_what_get_state_gives_set_state_puts_back():
    envs = make_envs(2, task_ids=(0, 1), cameras=("agentview",))
    envs.reset(seed=0)
    play(envs, random_actions(envs, 3))
    kept, copies = envs.get_state(), [state.copy() for state in envs.get_state()]
    for slot, state in enumerate(kept):
        model = loaded_scene("libero_spatial", slot).model
        assert state.shape == (1 + model.nq + model.nv,)
        assert state.dtype == np.float64
    seen = envs.set_state(kept)
    assert seen in envs.observation_space
    elsewhere = play(envs, random_actions(envs, 5, seed=1))[-1]
    assert_same_states(kept, copies)
    assert any((one != other).any() for one, other in zip(kept, elsewhere, strict=True))
    again = envs.set_state(kept)
    assert_same_states(envs.get_state(), kept)
    for key in ("image", "state"):
        np.testing.assert_array_equal(again[key], seen[key])
    envs.close()


def test_a_state_that_is_set_is_what_the_robot_feels():
    envs = make_envs(1)
    observed, _ = envs.reset(options={"init_state_id": 0})
    state = envs.get_state()[0]
    fingers = envs._scenes[0].scene.osc.gripper_qpos
    state[1 + fingers] = [0.021, -0.013]
    felt = envs.set_state([state])["state"][0]
    np.testing.assert_allclose(felt[6:], [0.021, -0.013], atol=1e-7)
    np.testing.assert_allclose(felt[:6], observed["state"][0][:6], atol=1e-3)
    envs.close()


def test_a_saved_slot_goes_on_in_any_slot_exactly_as_it_would_have(engine: MujocoEngine):
    scene, other = loaded_scene(*BOWL_ON_PLATE), loaded_scene(*OTHER_BOWL_ON_PLATE)
    actions = np.random.default_rng(2).uniform(-1, 1, (3, 2, 6, 7))
    limits = np.full(2, 6)
    engine.begin([0, 1], [scene, other], [scene.scene.init_states[0], other.scene.init_states[1]])
    engine.step([0, 1], actions[0], limits)
    (saved,) = engine.save([0])
    engine.restore([1], [scene], [saved])
    np.testing.assert_array_equal(engine.get_state(0), engine.get_state(1))
    np.testing.assert_array_equal(*engine.proprioception([0, 1]))
    for chunk in actions[1:]:
        engine.step([0, 1], np.stack([chunk[0], chunk[0]]), limits)
        np.testing.assert_array_equal(engine.get_state(0), engine.get_state(1))
        np.testing.assert_array_equal(*engine.pictures()["agentview"])
        np.testing.assert_array_equal(*engine.proprioception([0, 1]))
    gone_on = engine.get_state(0)
    engine.restore([0], [scene], [saved])
    for chunk in actions[1:]:
        engine.step([0], chunk[:1], limits[:1])
    np.testing.assert_array_equal(engine.get_state(0), gone_on)


# --- actions


def test_actions_beyond_the_bounds_are_clipped_and_the_gripper_takes_its_sign():
    envs = make_envs(3)
    actions = 3 * random_actions(envs, 6)
    actions[:, 1] = np.clip(actions[:, 0], -1, 1)
    actions[:, 1, 6] = np.sign(actions[:, 0, 6])
    actions[:, 2] = 0.5 * actions[:, 1]
    envs.reset(options={"init_state_id": 0})
    for wild, clipped, halved in play(envs, actions):
        np.testing.assert_array_equal(wild, clipped)
        assert (wild != halved).any()
    envs.close()


def test_single_precision_actions_are_played_as_their_exact_values():
    envs = make_envs(2)
    actions = random_actions(envs, 3)
    envs.reset(options={"init_state_id": 0})
    single = play(envs, actions)
    envs.reset(options={"init_state_id": 0})
    for mine, theirs in zip(single, play(envs, actions.astype(np.float64)), strict=True):
        assert_same_states(mine, theirs)
    envs.close()


# --- faults


def diverging(state: np.ndarray, speed: float = HUGE_SPEED) -> np.ndarray:
    """`state` with its last degree of freedom moving at `speed`."""
    state = state.copy()
    state[-1] = speed
    return state


@pytest.mark.parametrize("speed", [1e5, HUGE_SPEED])
def test_a_simulation_that_diverges_ends_its_episode_and_touches_no_other_slot(speed: float):
    outcomes = []
    for harm in (False, True):
        envs = make_envs(3, chunk_size=4, autoreset_mode=AutoresetMode.DISABLED, cameras=("agentview",))
        envs.reset(options={"init_state_id": [0, 1, 2]})
        states = list(envs.get_state())
        if harm:
            states[1] = diverging(states[1], speed)
        envs.set_state(states)
        first, last = [envs.step(action) for action in random_actions(envs, 2)]
        outcomes.append((first, last, envs.get_state()))
        envs.close()
    for slot in (0, 2):
        for step in (0, 1):
            for key in ("image", "state"):
                np.testing.assert_array_equal(outcomes[0][step][0][key][slot], outcomes[1][step][0][key][slot])
            assert outcomes[1][step][4]["num_steps"][slot] == 4
        np.testing.assert_array_equal(outcomes[0][2][slot], outcomes[1][2][slot])
    observation, reward, terminated, truncated, info = outcomes[1][0]
    assert truncated.tolist() == [False, True, False]
    assert reward.tolist() == [0, 0, 0]
    assert not terminated.any()
    assert info["_fault"].tolist() == [False, True, False]
    assert info["fault"][0] is info["fault"][2] is None
    assert "diverged" in info["fault"][1]
    assert "BADQ" in info["fault"][1]
    assert 1 <= info["num_steps"][1] <= 4
    assert info["episode_length"].tolist() == [0, info["num_steps"][1], 0]
    assert np.isfinite(observation["state"]).all()
    assert "fault" not in outcomes[0][0][4]
    assert "fault" not in outcomes[1][1][4]


@pytest.mark.parametrize("mode", [AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP])
def test_after_a_fault_the_slot_plays_its_next_episode_as_if_nothing_had_been(mode: AutoresetMode):
    healthy, harmed = (make_envs(2, chunk_size=4, max_episode_steps=4, autoreset_mode=mode) for _ in range(2))
    actions = random_actions(harmed, 4)
    for envs in (healthy, harmed):
        envs.reset(seed=8)
    harmed.set_state([diverging(state) for state in harmed.get_state()])
    *_, info = harmed.step(actions[0])
    assert ("final_info" in info) == (mode == AutoresetMode.SAME_STEP)
    faults = info["final_info"]["fault"] if mode == AutoresetMode.SAME_STEP else info["fault"]
    assert all("diverged" in fault for fault in faults)
    *_, truncated, _ = healthy.step(actions[0])
    assert truncated.all()
    for action in actions[1:]:
        *_, info = harmed.step(action)
        healthy.step(action)
        assert "fault" not in info
        assert_same_states(harmed.get_state(), healthy.get_state())
    healthy.close()
    harmed.close()


class _DivergingStarts(LiberoEnv):
    """Slot 1 begins where physics gives up while settling."""

    def _next_start(self, slot: int, rng: np.random.Generator, episode: int, options: Mapping[str, np.ndarray]) -> Start:
        start = super()._next_start(slot, rng, episode, options)
        if slot != 1:
            return start
        return replace(start, state=diverging(start.state), key="diverging")


def test_a_start_that_diverges_while_settling_ends_its_episode_with_the_first_step():
    loaded_scene(*BOWL_ON_PLATE)
    envs = _DivergingStarts(2, task_ids=[0], detail="fast", cameras=(), chunk_size=3, autoreset_mode=AutoresetMode.DISABLED)
    for _ in range(2):
        envs.reset(seed=0)
        _, _, terminated, truncated, info = envs.step(np.zeros((2, 3, 7)))
        assert truncated.tolist() == [False, True]
        assert not terminated.any()
        assert "diverged" in info["fault"][1]
        assert info["num_steps"].tolist() == [3, 1]
    envs.close()
