"""One env after the other: what it is sent, and what of it is looked at."""

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from pipeline_envs import drift_config, make_spec

from vla_train.envs.factory import make_env_shard
from vla_train.envs.shard import EnvFaultError, action_bounds


class StrictEnv(gym.Env[np.ndarray, np.ndarray]):
    """Takes actions of its space alone; its state is not a number once `broken_at` steps were played, its episodes are of 3."""

    observation_space = gym.spaces.Box(-np.inf, np.inf, (2,), np.float32)
    action_space = gym.spaces.Box(-1.0, 1.0, (2,), np.float32)

    def __init__(self, broken_at: int = 99) -> None:
        self._broken_at = broken_at

    def _state(self) -> np.ndarray:
        return np.full(2, np.nan if self._steps >= self._broken_at else self._steps, np.float32)

    def reset(self, **_: Any) -> tuple[np.ndarray, dict[str, Any]]:
        self._steps = 0
        return self._state(), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        assert self.action_space.contains(action)
        self._steps += 1
        return self._state(), 0.0, self._steps == 3, False, {"success": False}


gym.register("Strict-v0", StrictEnv, max_episode_steps=9)


def play(chunks: int, **kwargs: str) -> list[list[bool]]:
    shard = make_env_shard(drift_config(id="test_single:Strict-v0", kwargs=kwargs, success="auto"), chunk_size=1)
    shard.reset(range(3), [make_spec(group_id) for group_id in range(3)], ["state"])
    return [shard.step(np.zeros((3, 1, 2), np.float32), np.ones(3, bool), ["state"]).terminated.tolist() for _ in range(chunks)]


def test_an_env_that_checks_its_actions_is_asked_for_success_with_one_of_its_space() -> None:
    assert play(3) == [[False] * 3, [False] * 3, [True] * 3]


def test_what_is_observed_after_the_end_means_nothing_and_before_it_must_be_numbers() -> None:
    assert play(3, broken_at="3")[-1] == [True] * 3
    with pytest.raises(EnvFaultError, match="state holds NaN"):
        play(3, broken_at="2")


def test_actions_of_whole_numbers_are_refused() -> None:
    with pytest.raises(ValueError, match=r"Some-v0: actions must be a vector of continuous numbers"):
        action_bounds(gym.spaces.Box(0, 10, (2,), np.int32), "Some-v0")
    with pytest.raises(ValueError, match="Some-v0: actions must be bounded on both sides"):
        action_bounds(gym.spaces.Box(-1e300, 1e300, (2,), np.float64), "Some-v0")  # infinite in float32
