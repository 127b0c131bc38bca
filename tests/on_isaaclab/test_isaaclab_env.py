"""`Isaac-v0` on Isaac Lab, a converted task: what every env of this package does, and what only this one refuses."""

from collections.abc import Iterator

import gymnasium as gym
import numpy as np
import pytest
from converted import TASKS, make
from gymnasium.vector import AutoresetMode

from vla_envs.errors import SceneFormatError
from vla_envs.isaac.lab.env import IsaacLabEnv

CHUNK, LIMIT = 3, 5


@pytest.fixture(scope="module", params=list(AutoresetMode), ids=lambda mode: mode.value)
def env(request: pytest.FixtureRequest) -> Iterator[IsaacLabEnv]:
    env = make(
        TASKS[0],
        cameras=("agentview", "wrist"),
        image_size=32,
        chunk_size=CHUNK,
        max_episode_steps=LIMIT,
        autoreset_mode=request.param,
        render_mode="rgb_array",
    )
    yield env
    env.close()
    env.close()


def still(env: IsaacLabEnv) -> np.ndarray:
    actions = np.zeros(env.action_space.shape, np.float32)
    actions[..., -1] = -1.0
    return actions


def test_spaces_are_those_of_the_package(env: IsaacLabEnv):
    observation, info = env.reset(seed=0)
    assert observation in env.observation_space
    assert set(observation) == {"image", "wrist_image", "state", "instruction"}
    assert env.single_action_space == gym.spaces.Box(-1.0, 1.0, (CHUNK, 7), np.float32)
    assert observation["image"].std() > 10  # something is drawn
    assert info["init_state_id"].tolist() == [-1, -1]
    assert info["task_id"].tolist() == [TASKS[0][1]] * 2
    np.testing.assert_array_equal(env.render()[0], observation["image"][0, :, ::-1])


def test_the_same_seed_gives_the_same_start_in_any_slot(env: IsaacLabEnv):
    same, _ = env.reset(seed=[7, 7])
    for name in ("image", "state"):
        np.testing.assert_array_equal(same[name][0], same[name][1])
    other, _ = env.reset(seed=[8, 7])
    np.testing.assert_array_equal(other["image"][1], same["image"][1])
    assert (other["image"][0] != same["image"][0]).any()


def test_a_masked_reset_leaves_the_other_slots_alone(env: IsaacLabEnv):
    env.reset(seed=[1, 2])
    moved = still(env)
    moved[..., 2] = -1.0
    before, *_ = env.step(moved)
    after, _ = env.reset(seed=[3, None], options={"reset_mask": np.array([True, False])})
    np.testing.assert_array_equal(after["state"][1], before["state"][1])
    assert np.abs(after["state"][0, :3] - before["state"][0, :3]).max() > 0.01


def test_a_chunk_ends_where_its_episode_ends(env: IsaacLabEnv):
    env.reset(seed=0)
    *_, truncated, info = env.step(still(env))
    assert info["num_steps"].tolist() == [CHUNK, CHUNK]
    assert not truncated.any()
    observation, reward, terminated, truncated, info = env.step(still(env))
    assert truncated.all()
    assert not terminated.any()
    assert reward.tolist() == [0.0, 0.0]
    ending = info["final_info"] if env.autoreset_mode == AutoresetMode.SAME_STEP else info
    assert ending["num_steps"].tolist() == [LIMIT - CHUNK] * 2
    assert ending["episode_length"].tolist() == [LIMIT, LIMIT]
    assert ending["success"].tolist() == [False, False]
    final = info["final_obs"][0] if env.autoreset_mode == AutoresetMode.SAME_STEP else {k: v[0] for k, v in observation.items()}
    following, _, _, truncated, info = env.step(still(env))
    assert not truncated.any()
    begun = {AutoresetMode.SAME_STEP: CHUNK, AutoresetMode.NEXT_STEP: 0, AutoresetMode.DISABLED: 0}[env.autoreset_mode]
    assert info["num_steps"].tolist() == [begun, begun]
    stays = env.autoreset_mode == AutoresetMode.DISABLED
    assert np.array_equal(following["image"][0], final["image"]) == stays


@pytest.mark.parametrize("env", [AutoresetMode.DISABLED], ids=lambda mode: mode.value, indirect=True)
def test_a_slot_that_is_over_waits_while_the_others_play(env: IsaacLabEnv):
    env.reset(seed=0)
    env.step(still(env))
    env.reset(options={"reset_mask": np.array([True, False])})
    final, _, _, truncated, _ = env.step(still(env))
    assert truncated.tolist() == [False, True]
    later, *_, info = env.step(still(env))
    assert info["num_steps"].tolist() == [LIMIT - CHUNK, 0]
    np.testing.assert_array_equal(later["state"][1], final["state"][1])
    begun, _ = env.reset(options={"reset_mask": np.array([False, True])})
    assert (begun["image"][1] != final["image"][1]).any()


@pytest.mark.parametrize(
    ("actions", "message"),
    [(np.zeros((2, 7)), r"actions must have shape \(2, 3, 7\)"), (np.full((2, CHUNK, 7), np.nan), "actions must be finite")],
)
def test_bad_actions_are_refused_before_anything_moves(env: IsaacLabEnv, actions: np.ndarray, message: str):
    before, _ = env.reset(seed=0)
    with pytest.raises(ValueError, match=message):
        env.step(actions)
    if env.autoreset_mode == AutoresetMode.DISABLED:
        after, _ = env.reset(seed=[0, None], options={"reset_mask": np.array([True, False])})
        np.testing.assert_array_equal(after["state"][1], before["state"][1])


def test_a_process_has_one_simulation(env: IsaacLabEnv):
    with pytest.raises(ValueError, match="one simulation per process"):
        make(TASKS[0])


def test_unknown_options_tasks_and_folders_are_refused(env: IsaacLabEnv, tmp_path):
    with pytest.raises(ValueError, match="unknown reset option 'init_state_id'"):
        env.reset(options={"init_state_id": 3})
    with pytest.raises(SceneFormatError, match="holds no task 99 of libero_goal: it has libero"):
        make(("libero_goal", 99))
    with pytest.raises(SceneFormatError, match="holds no converted tasks: make them with python"):
        make(TASKS[0], folder=tmp_path)
