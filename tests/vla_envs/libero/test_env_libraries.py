"""LiberoEnv in Stable-Baselines3 and TorchRL: beside the same env that leaves resets to its caller, and as the page has it."""

import re
import sys
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from fast_envs import BOWL_ON_PLATE, almost_done, make_envs, random_actions, still
from gymnasium.vector import AutoresetMode

from vla_envs import MissingDependencyError, as_sb3_env

PAGE = Path(__file__).parents[3] / "docs" / "other_libraries.md"
pytestmark = pytest.mark.usefixtures("opengl")
BLOCKS = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)


def make_sb3_env(num_envs: int = 2, **arguments: Any) -> Any:
    pytest.importorskip("stable_baselines3")
    return as_sb3_env(make_envs(num_envs, autoreset_mode=AutoresetMode.SAME_STEP, **arguments))


def test_an_episode_ends_with_its_own_last_observation_and_the_next_ones_first():
    env = make_sb3_env(max_episode_steps=3)
    other = make_envs(2, max_episode_steps=3, autoreset_mode=AutoresetMode.DISABLED)
    env.seed(5)
    first, same = env.reset(), other.reset(seed=[5, 6])[0]
    assert set(first) == set(env.observation_space.spaces) == {"state"}
    np.testing.assert_array_equal(first["state"], same["state"])
    for step, actions in enumerate(random_actions(other, 3), start=1):
        observation, rewards, done, infos = env.step(actions)
        same, _, _, truncated, _ = other.step(actions)
        assert done.tolist() == truncated.tolist() == [step == 3] * 2
        assert [info["TimeLimit.truncated"] for info in infos] == [step == 3] * 2
        assert ["terminal_observation" in info for info in infos] == [step == 3] * 2
    assert rewards.dtype == np.float32
    for slot, info in enumerate(infos):
        np.testing.assert_array_equal(info["terminal_observation"]["state"], same["state"][slot])
        assert (info["is_success"], info["episode_length"], info["num_steps"]) == (False, 3, 1)
    began = other.reset(options={"reset_mask": np.array([True, True])})[0]
    np.testing.assert_array_equal(observation["state"], began["state"])
    assert [info["init_state_id"] for info in env.reset_infos] == list(other.get_attr("init_state_id"))
    env.close()
    other.close()


def test_a_success_is_no_truncation():
    env = make_sb3_env(max_episode_steps=60)
    env.reset()
    states = env.env_method("get_state")
    env._envs.set_state([almost_done(*BOWL_ON_PLATE, states[0]), states[1]])
    done = [False]
    while not done[0]:
        _, rewards, done, infos = env.step(still(env._envs))
    assert (done.tolist(), rewards.tolist()) == ([True, False], [1.0, 0.0])
    assert [(info["is_success"], info["TimeLimit.truncated"]) for info in infos] == [(True, False), (False, False)]
    env.close()


def test_seeds_options_and_attributes_reach_the_envs_they_are_meant_for():
    env = make_sb3_env(task_ids=(0, 1), cameras=("agentview",), render_mode="rgb_array")
    env.set_options({"task_id": 1, "init_state_id": 3})
    env.reset()
    assert [(info["task_id"], info["init_state_id"]) for info in env.reset_infos] == [(1, 3)] * 2
    assert env.env_method("privileged", indices=1)[0].end_effector.position.shape == (3,)
    env.set_attr("render_every", 1, indices=[1])
    assert env.get_attr("render_every") == [None, 1]
    assert env.get_attr("task_id", indices=0) == [1]
    assert env.render().shape == (64, 32, 3)
    assert env.env_is_wrapped(gym.wrappers.TimeLimit) == [False, False]
    env.set_options([{"task_id": 0}, {}])
    with pytest.raises(ValueError, match="all envs need the same options"):
        env.reset()
    env.close()


@pytest.mark.parametrize("mode", [AutoresetMode.DISABLED, AutoresetMode.NEXT_STEP])
def test_an_env_that_resets_at_another_time_is_refused(mode: AutoresetMode):
    pytest.importorskip("stable_baselines3")
    with pytest.raises(ValueError, match="autoreset_mode='SameStep'"):
        as_sb3_env(make_envs(autoreset_mode=mode))


def test_without_stable_baselines3_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delitem(sys.modules, "vla_envs.vector.sb3_env", raising=False)
    monkeypatch.setitem(sys.modules, "stable_baselines3.common.vec_env", None)
    with pytest.raises(MissingDependencyError, match="pip install stable-baselines3"):
        as_sb3_env(make_envs(autoreset_mode=AutoresetMode.SAME_STEP))


def test_torchrl_plays_vector_envs_that_leave_resets_to_it():
    wrap = pytest.importorskip("torchrl.envs").GymWrapper
    env = wrap(make_envs(2, max_episode_steps=2, cameras=("agentview",), autoreset_mode=AutoresetMode.DISABLED))
    assert env.reset()["instruction"] == (env._env.instructions[0],) * 2
    done = env.rollout(4, break_when_any_done=False)["next", "done"]
    assert done[..., 0].tolist() == [[False, True, False, True]] * 2
    env.close()


def test_torchrl_plays_single_envs_with_their_instructions():
    wrap = pytest.importorskip("torchrl.envs").GymWrapper
    env = wrap(gym.make("Libero-v0", task_id=0, detail="fast", image_size=32, time_limit=2))
    played = env.rollout(4)
    assert played["next", "instruction"] == [env._env.unwrapped.instructions[0]] * 2
    env.close()


@pytest.mark.parametrize(("library", "block"), zip(["torchrl", "stable_baselines3"], BLOCKS, strict=True))
def test_the_page_about_other_libraries_runs(library: str, block: str, capsys: pytest.CaptureFixture[str]):
    pytest.importorskip(library)
    program: dict[str, Any] = {}
    exec(block.replace("9600", "320"), program)  # 320: one update
    printed = capsys.readouterr().out
    if library == "torchrl":
        assert printed == "torch.Size([4, 20, 64, 64, 3]) torch.Size([4, 20, 8])\n"
    else:
        assert program["model"].num_timesteps == 320
        assert {"success_rate", "ep_rew_mean"} <= set(re.findall(r"\w+", printed))
