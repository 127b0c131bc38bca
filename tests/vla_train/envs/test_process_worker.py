"""What can go wrong around a process of its own: it cannot be started, its errors cannot be read, its parent dies."""

import itertools
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from pipeline_envs import DrawingPolicy, assert_played_as_alone, drift_config, make_spec

import vla_train.envs.process as process_worker
from vla_train.config import EnvConfig, RolloutConfig
from vla_train.envs.shared_arrays import make_shared_file
from vla_train.envs.worker import WorkerError
from vla_train.envs.workers import make_workers
from vla_train.pipeline.rollout import Rollout
from vla_train.pipeline.timeline import Timeline
from vla_train.types import EpisodeSpec


def make_rollout(env: EnvConfig) -> Rollout:
    workers = make_workers(env, chunk_size=DrawingPolicy.chunk_size)
    config = RolloutConfig(groups_per_iteration=1, group_size=4, max_attempts=1.0, deterministic=True)
    return Rollout(config, policy=DrawingPolicy(), workers=workers, timeline=Timeline(), seed=11)


def prompts() -> Iterator[tuple[EpisodeSpec, ...]]:
    return (tuple(make_spec(group, sample) for sample in range(4)) for group in itertools.count())


def fill_memory(monkeypatch: pytest.MonkeyPatch, *, times: float) -> None:
    failures = itertools.count(1)

    def make(num_bytes: int) -> object:
        if next(failures) <= times:
            raise OSError(28, "No space left on device")
        return make_shared_file(num_bytes)

    monkeypatch.setattr(process_worker, "make_shared_file", make)


def test_a_restart_that_fails_once_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    env = drift_config(worker="process", kwargs={"fault": "die", "marker": str(tmp_path)}, num_workers=1, max_restarts=2)
    rollout = make_rollout(env)
    fill_memory(monkeypatch, times=1)
    try:
        result = rollout.collect(prompts(), lambda group: True)
    finally:
        rollout.close()
    assert result.stats.worker_restarts == 2
    for trajectory in result.groups[0].trajectories:
        assert_played_as_alone(trajectory, seed=11)


def test_restarts_that_keep_failing_end_the_run_as_any_fault_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rollout = make_rollout(drift_config(worker="process", kwargs={"fault": "die"}, num_workers=1, max_restarts=2))
    fill_memory(monkeypatch, times=float("inf"))
    try:
        with pytest.raises(WorkerError, match=r"failed after 2 restarts: OSError.*No space left"):
            rollout.collect(prompts(), lambda group: True)
        assert len(rollout.state_dict()["specs"]) == 4
    finally:
        rollout.close()


@pytest.mark.parametrize("method", ["__init__", "step"])
def test_an_error_of_a_class_that_only_the_process_knows_is_told_by_its_text(
    method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hidden = tmp_path / "hidden"
    hidden.mkdir()
    (hidden / "simulator_errors.py").write_text("class SimulatorError(Exception): pass")
    (tmp_path / f"licensed{method}_env.py").write_text(
        f"""
import sys
sys.path[:0] = [{str(Path(__file__).parents[1])!r}, {str(hidden)!r}]
import gymnasium as gym
from pipeline_envs import DriftEnv
from simulator_errors import SimulatorError

class Licensed(DriftEnv):
    def {method}(self, *arguments, **options):
        raise SimulatorError("the licence has expired")

gym.register("Licensed-v0", entry_point=Licensed, max_episode_steps=20, disable_env_checker=True)
"""
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    env = drift_config(id=f"licensed{method}_env:Licensed-v0", worker="process", num_workers=1, max_restarts=0)
    with pytest.raises(RuntimeError, match="SimulatorError: the licence has expired"):
        play_one_group(env)


def play_one_group(env: EnvConfig) -> None:
    rollout = make_rollout(env)
    try:
        rollout.collect(prompts(), lambda group: True)
    finally:
        rollout.close()


def test_shared_memory_has_no_name_that_could_be_left_behind() -> None:
    file = make_shared_file(1000)
    try:
        assert os.fstat(file.descriptor).st_nlink == 0
    finally:
        file.close()
