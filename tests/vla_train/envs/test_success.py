"""What counts as a success: what the env says, what the user says, and never a guess."""

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from pipeline_envs import make_spec

from vla_train.config import EnvConfig
from vla_train.envs.factory import make_env_shard
from vla_train.envs.shard import EnvFaultError, EnvShard
from vla_train.pipeline.episode_recorder import EpisodeRecorder

LENGTH, CHUNK_SIZE = 6, 2
ANSWERS = {"nan": float("nan"), "text": "False", "minus": -1, "one": 1.0, "zero": np.int64(0), "array": np.array([True])}


class PlannedEnv(gym.Env[np.ndarray, np.ndarray]):
    """Says what it was told to, step by step.

    Args:
        falls_at: The step at which the episode ends by itself, with reward 1; None: only the time limit ends it.
        key: What in `info` tells of success; none if empty.
        succeeds_at: The one step at which it is true.
        only_at_end: Whether `info` tells only when the episode ends.
        answer: What it says, instead of true and false.
    """

    observation_space = gym.spaces.Box(-1, 1, (1,), np.float32)
    action_space = gym.spaces.Box(-1, 1, (1,), np.float32)

    def __init__(
        self,
        *,
        falls_at: int | None = None,
        key: str = "",
        succeeds_at: int = -1,
        only_at_end: bool = False,
        answer: Any = None,
    ) -> None:
        self._falls_at, self._key, self._succeeds_at, self._only_at_end = falls_at, key, succeeds_at, only_at_end
        self._answer = answer

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        self._steps = 0
        return np.zeros(1, np.float32), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self._steps += 1
        falls = self._steps == self._falls_at
        told = self._key and (falls or self._steps == LENGTH or not self._only_at_end)
        says = ANSWERS.get(self._answer, self._steps == self._succeeds_at)
        info = {self._key: says} if told else {}
        return np.zeros(1, np.float32), 1.0, falls, False, info


gym.register("Planned-v0", entry_point=PlannedEnv, max_episode_steps=LENGTH, disable_env_checker=True)


def shard(success: str, vectorised: bool, **plan: Any) -> EnvShard:
    kwargs = {name: str(value).lower() if isinstance(value, bool) else str(value) for name, value in plan.items()}
    if vectorised:
        kwargs["vectorization_mode"] = "sync"
    config = EnvConfig(id="Planned-v0", kwargs=kwargs, success=success, success_return=5.0, envs_per_worker=2)
    return make_env_shard(config, chunk_size=CHUNK_SIZE)


def outcome(success: str, vectorised: bool, **plan: Any) -> bool:
    """Whether the first episode counts as a success."""
    env = shard(success, vectorised, **plan)
    recorder = EpisodeRecorder(spec=make_spec(0), instruction="")
    env.reset([0, 1], [make_spec(0), make_spec(1)], [])
    while True:
        result = env.step(np.zeros((2, CHUNK_SIZE, 1), np.float32), np.ones(2, bool), [])
        recorder.decide({}, {"nothing": np.zeros(1)}, 0)
        recorder.play(int(result.num_steps[0]), float(result.rewards[0]), succeeded=bool(result.succeeded[0]))
        if result.terminated[0] or result.truncated[0]:
            break
    env.close()
    config = EnvConfig(success=success, success_return=5.0)
    return recorder.finish(terminated=bool(result.terminated[0]), truncated=bool(result.truncated[0]), config=config).success


@pytest.mark.parametrize("vectorised", [False, True])
@pytest.mark.parametrize("key", ["success", "is_success"])
def test_auto_takes_what_the_env_says_also_where_only_the_time_limit_ends_it(key: str, vectorised: bool) -> None:
    assert outcome("auto", vectorised, key=key, succeeds_at=3)
    assert outcome("auto", vectorised, key=key, succeeds_at=LENGTH)
    assert not outcome("auto", vectorised, key=key)


@pytest.mark.parametrize("vectorised", [False, True])
def test_a_fall_that_the_env_does_not_call_a_success_is_none(vectorised: bool) -> None:
    assert not outcome("auto", vectorised, key="success", falls_at=4)
    assert outcome("terminated", vectorised, falls_at=4)


@pytest.mark.parametrize("vectorised", [False, True])
def test_an_env_that_says_nothing_is_asked_about(vectorised: bool) -> None:
    with pytest.raises(ValueError, match=r"Planned-v0 does not say whether an episode succeeds .* set env\.success"):
        shard("auto", vectorised, falls_at=4)


@pytest.mark.parametrize("vectorised", [False, True])
def test_another_key_of_info_may_tell_even_if_only_at_the_end(vectorised: bool) -> None:
    assert outcome("info:solved", vectorised, key="solved", succeeds_at=5)
    assert outcome("info:solved", vectorised, key="solved", succeeds_at=LENGTH, only_at_end=True)
    assert outcome("info:solved", vectorised, key="solved", succeeds_at=4, falls_at=4, only_at_end=True)
    with pytest.raises(EnvFaultError, match=r"ended without info\['solved'\]"):
        outcome("info:solved", vectorised, key="success")


@pytest.mark.parametrize("vectorised", [False, True])
@pytest.mark.parametrize(("answer", "wanted"), [("one", True), ("zero", False), ("array", True)])
def test_a_success_may_be_a_number_of_one_or_zero(answer: str, wanted: bool, vectorised: bool) -> None:
    assert outcome("auto", vectorised, key="success", answer=answer) is wanted


@pytest.mark.parametrize("vectorised", [False, True])
@pytest.mark.parametrize(("answer", "said"), [("nan", "nan"), ("text", "False"), ("minus", "-1")])
def test_what_is_no_answer_is_no_success(answer: str, said: str, vectorised: bool) -> None:
    with pytest.raises(EnvFaultError, match=rf"info\['success'\] is {said}: true, false, 1 and 0 tell of success"):
        outcome("auto", vectorised, key="success", answer=answer)


@pytest.mark.parametrize("vectorised", [False, True])
def test_a_return_counts_over_the_whole_episode(vectorised: bool) -> None:
    assert outcome("return", vectorised, falls_at=5)
    assert not outcome("return", vectorised, falls_at=4)


@pytest.mark.parametrize("success", ["maybe", "info:", ""])
def test_an_unknown_rule_is_refused(success: str) -> None:
    with pytest.raises(ValueError, match=r"env\.success must be auto, terminated, return or info:KEY"):
        EnvConfig(success=success)


@pytest.mark.parametrize(("reward", "steps", "wanted"), [(0.01, 100, 1.0), (1000 / 300, 300, 1000.0), (-0.1, 30, -3.0)])
def test_a_return_that_is_reached_up_to_rounding_is_a_success(reward: float, steps: int, wanted: float) -> None:
    def succeeds(played: int) -> bool:
        recorder = EpisodeRecorder(spec=make_spec(0), instruction="")
        for _ in range(played):
            recorder.decide({}, {"nothing": np.zeros(1)}, 0)
            recorder.play(1, float(np.float32(reward)), succeeded=False)
        config = EnvConfig(success="return", success_return=wanted)
        return recorder.finish(terminated=True, truncated=False, config=config).success

    assert succeeds(steps)
    assert not succeeds(steps - 1 if reward > 0 else steps + 1)
