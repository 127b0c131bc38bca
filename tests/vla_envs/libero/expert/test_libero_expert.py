"""The scripted expert: succeeds on every suite, recovers from noise, refuses by name, and does the same for the same seed."""

import numpy as np
import pytest
from fast_envs import make_envs

from vla_envs.errors import NotResetError, UnsupportedTaskError
from vla_envs.libero.env import LiberoEnv

MICROWAVE = ("libero_90", 33)


def episode(envs: LiberoEnv, *, noise: float = 0.0, first_state: int = 0) -> tuple[np.ndarray, list[np.ndarray]]:
    """Which slots succeed, from successive initial states; and all actions."""
    num_envs = envs.num_envs
    envs.reset(seed=0, options={"init_state_id": np.arange(first_state, first_state + num_envs)})
    experts = [envs.make_expert(slot, noise=noise, seed=slot) for slot in range(num_envs)]
    success, over, played = np.zeros(num_envs, bool), np.zeros(num_envs, bool), []
    while not over.all():
        actions = np.array([np.zeros(7) if over[slot] else experts[slot].act() for slot in range(num_envs)])
        played.append(actions)
        _, _, terminated, truncated, _ = envs.step(actions)
        success |= terminated
        over |= terminated | truncated
    return success, played


@pytest.mark.parametrize(
    ("suite", "task_id"),
    [("libero_spatial", 0), ("libero_goal", 7), ("libero_goal", 0), ("libero_10", 1), MICROWAVE],
)
def test_the_expert_succeeds_on_a_task_of_each_suite(suite: str, task_id: int):
    envs = make_envs(3, suite, (task_id,), autoreset_mode="Disabled")
    success, _ = episode(envs)
    assert success.all()
    envs.close()


def test_the_expert_recovers_from_noise_and_says_what_it_would_have_done_without():
    envs = make_envs(6, *_task(MICROWAVE), autoreset_mode="Disabled")
    success, _ = episode(envs, noise=0.15, first_state=10)
    assert success.sum() >= 5
    envs.reset(seed=0)
    expert = envs.make_expert(0, noise=0.3, seed=1)
    action = expert.act()
    assert action.shape == (7,)
    assert (np.abs(action) <= 1).all()
    assert np.abs(action - expert.intended).max() > 0.01
    assert action[6] == expert.intended[6]
    envs.close()


def test_the_same_seed_gives_the_same_actions_and_another_seed_others():
    envs = make_envs(2, *_task(MICROWAVE), autoreset_mode="Disabled")
    first, second = (episode(envs, noise=0.1)[1] for _ in range(2))
    np.testing.assert_array_equal(first, second)
    envs.reset(seed=0, options={"init_state_id": 0})
    actions = [envs.make_expert(0, seed=seed).act() for seed in (0, 1)]
    assert not np.array_equal(*actions)
    envs.close()


def test_a_hand_that_is_pushed_away_comes_back():
    envs = make_envs(1, *_task(MICROWAVE), autoreset_mode="Disabled")
    envs.reset(seed=0, options={"init_state_id": 2})
    expert, disturbed, terminated = envs.make_expert(0, seed=0), 0, np.zeros(1, bool)
    while not terminated[0] and disturbed < 250:
        disturbed += 1
        pushed = 20 <= disturbed < 30
        action = np.array([0.5, -1.0, 1.0, 0, 0, 0, -1]) if pushed else expert.act()
        _, _, terminated, _, _ = envs.step(action[None])
    assert terminated[0]
    envs.close()


@pytest.mark.parametrize(
    ("suite", "task_id", "reason"),
    [
        ("libero_90", 35, "opening doors"),
        ("libero_90", 32, "ketchup_1 would stand out of"),
        ("libero_goal", 5, "no hold on plate_1"),
    ],
)
def test_a_task_beyond_it_is_declined_by_name_before_anything_moves(suite: str, task_id: int, reason: str):
    envs = make_envs(1, suite, (task_id,))
    envs.reset(seed=0)
    before = envs.get_state()[0]
    assert reason in envs.expert_declines(0)
    with pytest.raises(UnsupportedTaskError, match=rf"{suite} task {task_id} \({envs.instructions[task_id]}\): .*{reason}"):
        envs.make_expert(0)
    np.testing.assert_array_equal(envs.get_state()[0], before)
    envs.close()


def test_a_task_within_reach_is_not_declined():
    envs = make_envs(1, *_task(MICROWAVE))
    envs.reset(seed=0)
    assert envs.expert_declines() == ""
    envs.close()


def test_bad_arguments_are_refused():
    envs = make_envs(1, *_task(MICROWAVE))
    with pytest.raises(NotResetError):
        envs.make_expert(0)
    envs.reset(seed=0)
    for noise in (-0.1, 1.5, float("nan")):
        with pytest.raises(ValueError, match=r"noise must be in 0\.\.1"):
            envs.make_expert(0, noise=noise)
    with pytest.raises(ValueError, match="slot"):
        envs.make_expert(1)
    envs.close()


def test_an_expert_of_another_task_says_that_a_new_one_is_needed():
    envs = make_envs(1, "libero_90", (33, 35))
    envs.reset(seed=0, options={"task_id": 33})
    expert = envs.make_expert(0)
    envs.reset(options={"task_id": 35})
    with pytest.raises(NotResetError, match="make a new one"):
        expert.act()
    envs.close()


def _task(task: tuple[str, int]) -> tuple[str, tuple[int]]:
    return task[0], (task[1],)
