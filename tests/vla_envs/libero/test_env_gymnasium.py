"""LiberoEnv by Gymnasium's own rules: its checker, its spaces, its vector env as the oracle for autoreset."""

import warnings
from collections.abc import Callable, Iterator
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from fast_envs import BOWL_ON_PLATE, OTHER_BOWL_ON_PLATE, almost_done, loaded_scene, make_envs, random_actions
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from vla_envs.libero.env import LiberoEnv, make_libero_env
from vla_envs.libero.suites import TIME_LIMITS

IDS = {
    "Libero-v0": "libero_spatial",
    "Libero-Spatial-v0": "libero_spatial",
    "Libero-Object-v0": "libero_object",
    "Libero-Goal-v0": "libero_goal",
    "Libero-10-v0": "libero_10",
    "Libero-90-v0": "libero_90",
}
STILL = np.array([0, 0, 0, 0, 0, 0, -1.0])


pytestmark = pytest.mark.usefixtures("opengl")


@pytest.fixture
def single() -> Iterator[gym.Env]:
    loaded_scene(*BOWL_ON_PLATE)
    env = gym.make("Libero-v0", task_id=0, detail="fast", image_size=32, render_mode="rgb_array")
    yield env
    env.close()


@pytest.fixture(params=list(AutoresetMode), ids=lambda mode: mode.name)
def mode(request: pytest.FixtureRequest) -> AutoresetMode:
    return request.param


def test_gymnasiums_checker_has_nothing_to_say_but_that_states_have_no_bounds(single: gym.Env):
    with warnings.catch_warnings(record=True) as raised:
        warnings.simplefilter("always")
        check_env(single.unwrapped)
    complaints = [str(warning.message) for warning in raised if "env_checker" in warning.filename]
    assert all("infinity" in complaint for complaint in complaints), complaints


def test_gymnasiums_checker_takes_chunks_too():
    env = make_libero_env(task_id=0, detail="fast", image_size=32, cameras=("agentview", "wrist"), chunk_size=3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        check_env(env)


def test_a_single_env_drops_the_leading_axis_everywhere(single: gym.Env):
    observation, info = single.reset(seed=0)
    assert observation in single.observation_space
    assert observation["image"].shape == (32, 32, 3)
    assert info["task_id"] == 0
    assert info["renderer"] == single.unwrapped.renderer
    observation, reward, terminated, truncated, info = single.step(STILL)
    assert observation in single.observation_space
    assert (reward, terminated, truncated) == (0.0, False, False)
    assert type(reward) is float
    assert type(terminated) is type(truncated) is bool
    assert info["num_steps"] == 1
    assert "episode_length" not in info
    assert single.render().shape == (32, 32, 3)


def test_a_single_env_ends_with_its_statistics_and_must_then_be_reset(single: gym.Env):
    single.reset(seed=0)
    env = single.unwrapped
    env.set_state(almost_done(*BOWL_ON_PLATE, env.get_state()))
    length, terminated = 0, False
    while not terminated and length < 20:
        _, reward, terminated, truncated, info = env.step(STILL)
        length += 1
    assert (reward, terminated, truncated) == (1.0, True, False)
    assert info["success"]
    assert (info["episode_return"], info["episode_length"]) == (1.0, length)
    assert info["episode_seconds"] > 0
    assert "fault" not in info
    with pytest.raises(RuntimeError, match="finished episode"):
        env.step(STILL)
    env.reset()
    env.step(STILL)


@pytest.mark.parametrize("chunk_size", [None, 3])
def test_spaces_contain_what_a_vector_env_returns(chunk_size: int | None):
    envs = make_envs(2, task_ids=(0, 1), chunk_size=chunk_size, cameras=("agentview", "wrist"))
    observation, _ = envs.reset(seed=0)
    assert observation in envs.observation_space
    assert set(observation) == {"image", "wrist_image", "state", "instruction"}
    for action in random_actions(envs, 2):
        assert action in envs.action_space
        observation, reward, terminated, truncated, _ = envs.step(action)
        assert observation in envs.observation_space
        assert (reward.shape, reward.dtype) == ((2,), np.float64)
        assert terminated.dtype == truncated.dtype == bool
    for slot in range(2):
        alone = {key: value[slot] for key, value in observation.items()}
        assert alone in envs.single_observation_space
    assert observation["instruction"] == (envs.instructions[0], envs.instructions[1])
    envs.close()


def test_observations_are_not_written_to_later():
    envs = make_envs(1, cameras=("agentview",))
    first, _ = envs.reset(seed=0)
    copies = {key: np.copy(value) for key, value in first.items()}
    for action in random_actions(envs, 3):
        envs.step(action)
    for key, value in copies.items():
        np.testing.assert_array_equal(first[key], value)
    envs.close()


@pytest.mark.parametrize(("env_id", "suite"), IDS.items())
def test_each_suite_has_an_id_with_its_tasks_and_its_time_limit(env_id: str, suite: str):
    envs = gym.make_vec(env_id, num_envs=2, cameras=())
    assert envs.suite == suite
    assert envs.max_episode_steps == TIME_LIMITS[suite]
    assert len(envs.task_ids) == (90 if suite == "libero_90" else 10)
    assert set(envs.instructions) == set(envs.num_init_states) == set(envs.task_ids)
    envs.close()
    env = gym.make(env_id, cameras=())
    assert (env.unwrapped.suite, env.unwrapped.max_episode_steps) == (suite, TIME_LIMITS[suite])
    env.close()


def test_instructions_of_perturbed_suites_are_in_the_space():
    envs = LiberoEnv(1, suite="libero_goal_lan", cameras=())
    for instruction in envs.instructions.values():
        assert instruction in envs.single_observation_space["instruction"]
    envs.close()


def test_the_autoreset_mode_is_declared_and_may_be_given_by_name(mode: AutoresetMode):
    for given in (mode, mode.value):
        envs = make_envs(1, autoreset_mode=given)
        assert envs.autoreset_mode is envs.metadata["autoreset_mode"] is mode
        envs.close()


def masks_of(info: dict[str, Any], prefix: str = "") -> dict[str, list[bool]]:
    """Path of each key of an info -> its mask."""
    found = {}
    for key, value in info.items():
        if not key.startswith("_") and info[f"_{key}"].any():
            found[prefix + key] = info[f"_{key}"].tolist()
            assert info[f"_{key}"].dtype == bool
            if isinstance(value, dict):
                found |= masks_of(value, f"{prefix}{key}/")
    return found


def test_episodes_end_and_begin_as_in_gymnasiums_own_vector_env(mode: AutoresetMode):
    """Slot 0 succeeds after a few steps, slot 1 meets its time limit: rewards, flags, final observations and masks agree."""
    ours = make_envs(2, max_episode_steps=5, autoreset_mode=mode)
    arguments = {"task_ids": [0], "detail": "fast", "cameras": (), "image_size": 32, "time_limit": 5}
    theirs = SyncVectorEnv([lambda: make_libero_env(**arguments)] * 2, autoreset_mode=mode)
    ours.reset(options={"init_state_id": 7})
    theirs.reset(options={"init_state_id": 7})
    near = almost_done(*BOWL_ON_PLATE, ours.get_state()[0])
    start = ours.get_state()[1]
    ours.set_state([near, start])
    for env, state in zip(theirs.envs, (near, start), strict=True):
        env.unwrapped.set_state(state)
    num_endings = np.zeros(2, int)
    for action in random_actions(ours, 8):
        if mode == AutoresetMode.DISABLED and num_endings.any():
            break
        mine, other = ours.step(action), theirs.step(action)
        for one, expected in zip(mine[1:4], other[1:4], strict=True):
            np.testing.assert_array_equal(one, expected)
            assert one.dtype == expected.dtype
        ended = mine[2] | mine[3]
        num_endings += ended
        assert ("final_obs" in mine[4]) == ("final_obs" in other[4]) == (mode == AutoresetMode.SAME_STEP and ended.any())
        if "final_obs" in mine[4]:
            assert mine[4]["final_obs"].dtype == other[4]["final_obs"].dtype == object
            for slot, (one, expected) in enumerate(zip(mine[4]["final_obs"], other[4]["final_obs"], strict=True)):
                assert (one is None) == (expected is None)
                assert one is None or one in ours.single_observation_space
                if one is not None and num_endings[slot] == 1:  # later episodes begin elsewhere
                    np.testing.assert_array_equal(one["state"], expected["state"])
            assert masks_of(mine[4]["final_info"]) == masks_of(other[4]["final_info"])
            expected = masks_of(other[4])
            del expected["renderer"]  # ours is told by `reset` only
            assert masks_of(mine[4]) == expected
    assert num_endings.any() if mode == AutoresetMode.DISABLED else num_endings.all()
    ours.close()
    theirs.close()


def test_gymnasiums_vector_wrappers_take_it():
    envs = gym.wrappers.vector.DictInfoToList(make_envs(2, max_episode_steps=2))
    envs.reset(seed=0)
    for action in random_actions(envs, 2):
        _, _, _, truncated, infos = envs.step(action)
    assert truncated.all()
    assert [info["episode_length"] for info in infos] == [2, 2]
    envs.close()


def test_gymnasiums_episode_statistics_are_added_to_ours(mode: AutoresetMode):
    envs = gym.wrappers.vector.RecordEpisodeStatistics(make_envs(2, max_episode_steps=2, chunk_size=2, autoreset_mode=mode))
    envs.reset(seed=0)
    *_, info = envs.step(random_actions(envs, 1)[0])
    assert info["episode"]["l"].tolist() == [1, 1], "Gymnasium counts calls"
    ours = info["final_info"] if mode == AutoresetMode.SAME_STEP else info
    assert ours["episode_length"].tolist() == [2, 2]
    envs.close()


def test_gymnasiums_episode_statistics_are_added_to_those_of_a_single_env():
    env = gym.wrappers.RecordEpisodeStatistics(gym.make("Libero-v0", task_id=0, detail="fast", cameras=(), time_limit=2))
    env.reset(seed=0)
    env.step(STILL)
    *_, info = env.step(STILL)
    assert (info["episode"]["l"], info["episode_length"]) == (2, 2)
    env.close()


def test_what_a_step_returns_shares_no_memory(mode: AutoresetMode):
    envs = make_envs(2, max_episode_steps=1, autoreset_mode=mode)
    envs.reset(seed=0)
    _, _, terminated, _, info = envs.step(random_actions(envs, 1)[0])
    seen = [info["success"], *([info["final_info"]["success"]] if "final_info" in info else [])]
    assert not any(np.shares_memory(terminated, success) for success in seen)
    assert len(seen) == 1 or not np.shares_memory(*seen)
    envs.close()


def test_single_envs_of_different_tasks_fit_into_one_vector_env():
    def make(task_id: int) -> Callable[[], gym.Env]:
        return lambda: gym.make("Libero-v0", task_id=task_id, detail="fast", cameras=())

    envs = SyncVectorEnv([make(task_id) for task_id in (0, 1)])
    observation, info = envs.reset(seed=0)
    assert observation in envs.observation_space
    assert info["task_id"].tolist() == [0, 1]
    envs.close()


@pytest.mark.parametrize(("chunk_size", "fps"), [(None, 20), (8, 2.5)])
def test_videos_of_what_is_rendered_after_each_step_play_in_the_robots_time(chunk_size: int | None, fps: float):
    envs = make_envs(1, chunk_size=chunk_size)
    assert envs.metadata["render_fps"] == fps
    envs.close()
    env = gym.make("Libero-v0", task_id=0, detail="fast", cameras=(), chunk_size=chunk_size)
    assert env.metadata["render_fps"] == fps
    env.close()


def test_one_task_of_a_vector_env_may_be_named_as_that_of_a_single_env_is():
    envs = gym.make_vec("Libero-v0", num_envs=1, task_id=3, cameras=())
    assert envs.task_ids == (3,)
    envs.close()


def test_close_takes_what_gymnasiums_own_vector_envs_take():
    envs = make_envs(1)
    envs.close(terminate=True)
    assert envs.closed


def test_make_vec_can_also_copy_single_envs():
    loaded_scene(*OTHER_BOWL_ON_PLATE)
    envs = gym.make_vec("Libero-v0", num_envs=2, vectorization_mode="sync", task_id=1, detail="fast", cameras=(), chunk_size=2)
    envs.reset(seed=0)
    observation, _, _, _, info = envs.step(np.zeros((2, 2, 7), np.float32))
    assert observation in envs.observation_space
    assert info["num_steps"].tolist() == [2, 2]
    envs.close()
