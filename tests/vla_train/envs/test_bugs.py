"""A bug of a user's env keeps its traceback and names the env, wherever it happens; a refusal is one line."""

import itertools
import traceback
from collections.abc import Iterator
from typing import Any

import pytest
from buggy_env import BUGS
from pipeline_envs import DrawingPolicy, drift_config, make_spec

from vla_train.config import EnvConfig, RolloutConfig
from vla_train.envs.bugs import EnvPackageMissing, EnvRefusal, is_bug
from vla_train.envs.worker import WorkerError
from vla_train.envs.workers import make_workers
from vla_train.pipeline.rollout import Rollout
from vla_train.pipeline.timeline import Timeline
from vla_train.types import EpisodeSpec


def buggy_config(worker: str, *, method: str, bug: str) -> EnvConfig:
    return drift_config(
        id="buggy_env:Buggy-v0", worker=worker, kwargs={"method": method, "bug": bug}, num_workers=1, max_restarts=0
    )


def prompts() -> Iterator[tuple[EpisodeSpec, ...]]:
    return (tuple(make_spec(group, sample) for sample in range(4)) for group in itertools.count())


def play(env: EnvConfig) -> None:
    workers = make_workers(env, chunk_size=DrawingPolicy.chunk_size)
    config = RolloutConfig(groups_per_iteration=1, group_size=4, max_attempts=1.0)
    rollout = Rollout(config, policy=DrawingPolicy(), workers=workers, timeline=Timeline(), seed=11)
    try:
        rollout.collect(prompts(), lambda group: True)
    finally:
        rollout.close()


def assert_told_as_a_bug(error: WorkerError, bug: str) -> None:
    assert "buggy_env:Buggy-v0" in str(error)
    assert BUGS[bug] in str(error)
    cause = error.__cause__
    assert cause is not None
    assert is_bug(cause)
    told = "".join(traceback.format_exception(cause))
    assert "buggy_env.py" in told
    assert "in _visit" in told


@pytest.mark.parametrize(
    ("worker", "method", "bug"),
    [
        *itertools.product(["thread"], ["make", "first reset", "reset", "step"], BUGS),
        *[("process", "make", "shapes"), ("process", "first reset", "value"), ("process", "step", "import")],
    ],
)
def test_a_bug_of_an_env_keeps_its_traceback_and_names_the_env(worker: str, method: str, bug: str) -> None:
    with pytest.raises(WorkerError) as failure:
        play(buggy_config(worker, method=method, bug=bug))
    assert_told_as_a_bug(failure.value, bug)


@pytest.mark.parametrize("worker", ["thread", "process"])
@pytest.mark.parametrize(
    "changes",
    [
        {"kwargs": {"colour": "red"}},
        {"image_key": "camera"},
        {"id": "Nope-v0"},
        {"id": "no_such_module:Nope-v0"},
        {"kwargs": {"vectorization_mode": "x"}},
        {"id": "CartPole-v1"},
    ],
    ids=str,
)
def test_what_cannot_be_used_is_refused_in_one_line_that_names_the_env(changes: dict[str, Any], worker: str) -> None:
    with pytest.raises((EnvRefusal, EnvPackageMissing)) as refusal:
        make_workers(drift_config(worker=worker, num_workers=1, **changes), chunk_size=3)
    assert changes.get("id", "pipeline_envs:Drift-v0") in str(refusal.value)
    assert "\n" not in str(refusal.value)
    assert ("is the folder of no_such_module.py on the PYTHONPATH?" in str(refusal.value)) == ("no_such" in str(changes))
