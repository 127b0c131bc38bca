"""`vla_libero` beside LeRobot's own `libero` env: options, observations, and which episodes are played."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import MISSING, fields
from typing import Any

import numpy as np
import pytest
import torch
from lerobot.envs import libero as lerobot_libero
from lerobot.envs import make_env, preprocess_observation
from lerobot.envs.configs import EnvConfig
from lerobot.envs.configs import LiberoEnv as TheirConfig
from lerobot.envs.utils import NEW_ROLLOUT_OPTION

from vla_envs.errors import NotResetError
from vla_envs.lerobot import VlaLiberoEnv
from vla_envs.lerobot.config import TIME_LIMITS
from vla_envs.lerobot.env import LeRobotVectorEnv

STILL = np.array([0, 0, 0, 0, 0, 0, -1], np.float32)


@contextmanager
def opened(num_envs: int = 1, config_class: type[EnvConfig] = VlaLiberoEnv, task_id: int = 0, **options: Any) -> Iterator[Any]:
    """A vector env of one task, and its config."""
    small = {"task": "libero_spatial", "observation_height": 16, "observation_width": 16}
    config = config_class(task_ids=[task_id], **small | options)
    ((_, envs),) = make_env(config, n_envs=num_envs)[config.task].items()
    try:
        yield config, envs
    finally:
        envs.close()


@contextmanager
def fast(num_envs: int = 1, **options: Any) -> Iterator[LeRobotVectorEnv]:
    with opened(num_envs, detail="fast", **options) as (_, envs):
        yield envs


def option_defaults(config_class: type) -> dict[str, Any]:
    return {field.name: field.default for field in fields(config_class) if field.default is not MISSING}


def test_options_and_defaults_are_those_of_lerobots_own_env():
    theirs = option_defaults(TheirConfig)
    del theirs["is_libero_plus"]  # another benchmark
    ours = option_defaults(VlaLiberoEnv)
    assert {name: ours[name] for name in theirs} == theirs
    assert ours.keys() - theirs.keys() == {"n_action_steps", "detail", "device", "scene_dir"}


def test_time_limits_are_those_of_lerobots_own_env():
    assert TIME_LIMITS == lerobot_libero.TASK_SUITE_MAX_STEPS
    with fast(2) as envs:
        assert envs.call("_max_episode_steps") == (280, 280)
    with fast(episode_length=7) as envs:
        assert envs.call("_max_episode_steps") == (7,)


def policys_view(config: EnvConfig, observation: dict[str, Any]) -> dict[str, torch.Tensor]:
    """What LeRobot's evaluation makes of an observation before the policy's own processors."""
    processed = config.get_env_processors()[0](preprocess_observation(observation))
    return {key: value for key, value in processed.items() if isinstance(value, torch.Tensor)}


@pytest.fixture
def their_states(monkeypatch: pytest.MonkeyPatch) -> None:
    """LIBERO-PRO's distribution keeps its initial states elsewhere than LeRobot looks for them."""
    monkeypatch.setattr(lerobot_libero, "get_task_init_states", lambda suite, task_id, **_: suite.get_task_init_states(task_id))


@pytest.mark.parametrize("control_mode", ["relative", "absolute"])
def test_what_reaches_the_policy_is_what_lerobots_own_env_would_give(their_states: None, control_mode: str):
    options = {"task": "libero_goal", "task_id": 3, "observation_height": 96, "observation_width": 128}
    options["control_mode"] = control_mode
    actions = np.random.default_rng(0).uniform(-1, 1, (3, 1, 7)).astype(np.float32)
    with (
        opened(config_class=TheirConfig, **options) as (their_config, theirs),
        opened(**options) as (our_config, ours),
        opened(obs_type="robot_state", **options) as (raw_config, raw),
    ):
        for name in ("task", "task_description", "_max_episode_steps"):
            assert ours.call(name) == ours.get_attr(name) == theirs.call(name)
        configs, vectors = (their_config, our_config, raw_config), (theirs, ours, raw)
        observations = [envs.reset(seed=[0])[0] for envs in vectors]  # with this seed their fixtures stand where ours do
        for action in (*actions, None):
            expected, *given = (policys_view(*pair) for pair in zip(configs, observations, strict=True))
            for view in given:
                assert_same_view(view, expected)
            assert_same_raw(observations[2], observations[0])
            np.testing.assert_array_equal(ours.call("render")[0], theirs.envs[0].render())
            if action is None:
                break
            if control_mode == "absolute":
                state = observations[1]["agent_pos"]
                action = np.concatenate([state[:, :3] + action[:, :3] * 0.02, [[3.1, 0, 0]], action[:, 6:]], axis=1)
            steps = [envs.step(action) for envs in vectors]
            observations = [step[0] for step in steps]
            for _, reward, terminated, truncated, info in steps:
                assert (reward[0], terminated[0], truncated[0], info["is_success"][0]) == (0, False, False, False)


def assert_same_view(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> None:
    assert sorted(ours) == sorted(theirs) == ["observation.images.image", "observation.images.image2", "observation.state"]
    for key, expected in theirs.items():
        assert (ours[key].dtype, ours[key].shape) == (expected.dtype, expected.shape)
        apart = (ours[key] - expected).abs()
        if key == "observation.state":
            assert apart.max() < 1e-6
        else:  # physics differs in the seventh digit, which edges of what is close to the camera may show
            assert (apart > 0).float().mean() < 5e-3


def assert_same_raw(ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    """As X-VLA's processor reads them."""
    assert ours["robot_state"].keys() == theirs["robot_state"].keys()
    for part, readings in theirs["robot_state"].items():
        for name, expected in readings.items():
            atol = 1e-2 if name == "mat" else 1e-6  # theirs is of the controller's last look, a physics step earlier
            np.testing.assert_allclose(ours["robot_state"][part][name], expected, atol=atol)


def test_observations_lie_in_the_spaces_and_have_the_names_that_were_asked_for():
    names = {"agentview_image": "front", "birdview_image": "above"}
    with fast(2, camera_name="agentview_image, birdview_image", camera_name_mapping=names) as envs:
        observation, info = envs.reset(seed=[3, 4], options={NEW_ROLLOUT_OPTION: True})
        assert list(observation["pixels"]) == ["front", "above"]
        assert observation in envs.observation_space
        assert envs.single_action_space.shape == (7,)
        assert info["is_success"].tolist() == [False, False]
        np.testing.assert_array_equal(envs.render(), observation["pixels"]["front"])
    with fast(obs_type="pixels") as envs:
        assert envs.reset()[0].keys() == {"pixels"}
        assert envs.metadata["render_fps"] == 20
        assert isinstance(envs.metadata["render_fps"], int)  # or LeRobot writes no video


def test_initial_states_come_in_their_order_and_a_closed_env_begins_again():
    with fast(20, camera_name="agentview_image", observation_height=8, observation_width=8) as envs:
        for _ in range(2):
            played = []
            for _ in range(3):
                envs.reset(seed=list(range(20)))
                played += envs.call("init_state_id")
            assert played == [*range(50), *range(10)]
            envs.close()
            with pytest.raises(NotResetError, match="call reset"):
                envs.step(np.tile(STILL, (20, 1)))


def test_placements_that_are_drawn_depend_on_the_slots_seed():
    with fast(2, init_states=False) as envs:
        envs.reset(seed=[5, 6])
        first = envs.call("get_state")
        envs.reset(seed=[6, 5])
        second = envs.call("get_state")
        assert envs.call("init_state_id") == (-1, -1)
    np.testing.assert_array_equal(first, second[::-1])
    assert np.abs(first[0] - first[1]).max() > 1e-3


def test_actions_that_are_played_together_make_the_same_episode_and_draw_what_the_policy_looks_at():
    """Eight actions by threes: the policy looks after the third and the sixth, and the time limit comes after the eighth."""
    actions = np.random.default_rng(0).uniform(-1, 1, (8, 2, 7)).astype(np.float32)
    with fast(2, episode_length=8) as singly, fast(2, episode_length=8, n_action_steps=3) as together:
        last = singly.reset(seed=[0, 1])[0]
        together.reset(seed=[0, 1])
        for step, action in enumerate(actions, start=1):
            expected, *told = singly.step(action)
            given, *ours = together.step(action)
            looked_at = step in (3, 6, 8)
            last = expected if looked_at else last
            for key in ("image", "image2"):
                np.testing.assert_array_equal(given["pixels"][key], last["pixels"][key])
            np.testing.assert_array_equal(given["agent_pos"], last["agent_pos"])
            for mine, theirs in zip(ours[:3], told[:3], strict=True):
                np.testing.assert_array_equal(mine, theirs)
            assert ours[2].tolist() == [step == 8] * 2
            assert ours[3]["is_success"].tolist() == [False, False]
        np.testing.assert_array_equal(singly.call("get_state"), together.call("get_state"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"fps": 10}, "fps must be 20"),
        ({"control_mode": "joints"}, "control_mode must be one of 'relative', 'absolute', got 'joints'"),
        ({"obs_type": "state"}, "obs_type must be one of"),
        ({"camera_name": "agentview"}, "camera_name must be LIBERO's, such as 'agentview_image', got 'agentview'"),
        ({"camera_name": "birdview_image"}, "camera_name_mapping must say what the policy calls 'birdview_image'"),
        ({"camera_name_mapping": {"agentview_image": "image2"}}, "each camera needs a name of its own, got"),
        ({"camera_name": " "}, "camera_name must name a camera"),
        ({"task": ""}, "task must name a suite"),
        ({"n_action_steps": 0}, "n_action_steps must be an integer of at least 1, got 0"),
        ({"episode_length": 0}, "episode_length must be an integer of at least 1, got 0"),
        ({"observation_height": 4}, "image_size must be an integer of at least 8"),
        ({"task": "libero_nowhere"}, "unknown suite 'libero_nowhere'"),
        ({"task_ids": [3, 10]}, "task_ids must be a list of tasks of libero_spatial, which has 0..9"),
    ],
)
def test_what_cannot_work_is_refused_in_a_line(options: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        make_env(VlaLiberoEnv(**{"task": "libero_spatial"} | options), n_envs=1)


@pytest.mark.parametrize("actions", [np.zeros((2, 8)), np.zeros(7), np.full((2, 7), np.nan)])
def test_actions_that_cannot_be_move_nothing(actions: np.ndarray):
    with fast(2, n_action_steps=2) as envs:
        envs.reset(seed=[0, 0])
        before = envs.call("get_state")
        with pytest.raises(ValueError, match="actions must"):
            envs.step(actions)
        with pytest.raises(ValueError, match="unknown reset option 'task_id'"):
            envs.reset(options={"task_id": 1})
        np.testing.assert_array_equal(envs.call("get_state"), before)


def test_each_task_of_each_suite_has_an_env_with_its_suites_time_limit():
    config = VlaLiberoEnv(task="libero_spatial, libero_goal", task_ids=[4, 0, 4])
    envs = make_env(config, n_envs=3)
    assert {suite: list(tasks) for suite, tasks in envs.items()} == {"libero_spatial": [0, 4], "libero_goal": [0, 4]}
    limits = [tasks[0].call("_max_episode_steps") for tasks in envs.values()]
    assert limits == [(280,) * 3, (300,) * 3]
    for tasks in envs.values():
        for vector in tasks.values():
            vector.close()
