"""Errors and signals between a rollout and the update that learns from it: what is saved is labelled right and complete."""

import json
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vla_train.config import TrainConfig
from vla_train.envs.worker import WorkerError
from vla_train.loop import iterate, set_up
from vla_train.policy.simplevla_oft.policy import SimpleVLAOFTPolicy
from vla_train.run.run import Run
from vla_train.run.tracking import read_records
from vla_train.trainer import tensor_files
from vla_train.trainer.group_trainer import UpdateMetrics
from vla_train.types import Group

MakeRun = Callable[..., TrainConfig]


def newest_checkpoint(config: TrainConfig) -> Path:
    return max((config.output / "checkpoints").iterdir())


def saved_groups(config: TrainConfig) -> set[int]:
    """Groups that the newest checkpoint holds."""
    with np.load(newest_checkpoint(config) / "rollout.npz") as state:
        return set(state["specs"][:, 0].tolist())


def fail_at_push(run: Run, number: int) -> None:
    """The sampling policy is gone when weights are pushed for the `number`th time from now on."""
    push, pushes = run.trainer.push_weights, iter(range(1, number + 1))

    def failing(*policies: SimpleVLAOFTPolicy) -> None:
        if next(pushes) == number:
            raise WorkerError("policy replica 0 failed after 3 restarts")
        push(*policies)

    run.trainer.push_weights = failing  # type: ignore[method-assign]


@pytest.mark.parametrize("max_staleness", [0, 1])
def test_weights_that_cannot_be_pushed_are_saved_as_those_of_their_iteration(max_staleness: int, small_run: MakeRun) -> None:
    config = small_run(rollout={"max_staleness": max_staleness}, checkpoint_every=100)
    run = set_up(config)
    fail_at_push(run, 2)
    with pytest.raises(WorkerError, match="policy replica"):
        iterate(run)
    manifest = json.loads((newest_checkpoint(config) / "manifest.json").read_text())
    assert manifest["iteration"] == manifest["version"] == run.done == 2
    assert manifest["num_updates"] == run.trainer.num_updates
    assert [record["iteration"] for record in read_records(config.output)] == [1, 2]


def test_groups_are_kept_until_they_were_trained_on(small_run: MakeRun) -> None:
    config = small_run(checkpoint_every=100)
    run = set_up(config)

    def lost(iteration: int) -> None:
        raise WorkerError("the last straw")

    begin_next, run.begin_next = run.begin_next, lambda groups: lost(0) if run.done else begin_next(groups)  # type: ignore[method-assign]
    with pytest.raises(WorkerError, match="straw"):
        iterate(run)
    assert newest_checkpoint(config).name == "step_000001"
    assert saved_groups(config) == {2, 3}


@pytest.mark.parametrize("when", ["collect", "begin_next", "update", "record"])
def test_a_signal_around_an_update_ends_the_run_after_it(when: str, small_run: MakeRun) -> None:
    config = small_run(checkpoint_every=100)
    run = set_up(config)
    method = getattr(run, when)

    def signalled(*arguments: object) -> object:
        result = method(*arguments)
        signal.raise_signal(signal.SIGTERM)
        return result

    setattr(run, when, signalled)
    with pytest.raises(SystemExit):
        iterate(run)
    assert newest_checkpoint(config).name == "step_000001"
    assert not saved_groups(config) & {0, 1}
    assert [record["iteration"] for record in read_records(config.output)] == [1]


def test_no_two_sets_of_weights_that_sample_have_the_same_version(small_run: MakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    sampled: dict[int, set[bytes]] = {}
    act = SimpleVLAOFTPolicy.act

    def noted(policy: SimpleVLAOFTPolicy, *arguments: object, **options: object) -> object:
        weights = b"".join(weight.detach().numpy().tobytes() for weight in policy.model.parameters())
        sampled.setdefault(policy.version, set()).add(weights)
        return act(policy, *arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(SimpleVLAOFTPolicy, "act", noted)
    changes = {"rollout": {"max_staleness": 1, "deterministic": False}, "eval": {"every": 1, "episodes_per_task": 2}}
    run = set_up(small_run(iterations=5, **changes))
    update = run.update

    def interrupted_after_two(groups: tuple[Group, ...]) -> UpdateMetrics:
        metrics = update(groups)
        if run.done == 2:
            signal.raise_signal(signal.SIGTERM)  # the next rollout is under way, by the weights before
        return metrics

    run.update = interrupted_after_two  # type: ignore[method-assign]
    with pytest.raises(SystemExit):
        iterate(run)
    iterate(set_up(run.config))
    assert len(sampled) >= 5
    assert all(len(weights) == 1 for weights in sampled.values())
    lags = [record["update/policy_lag"] for record in read_records(run.config.output, "iteration")]
    assert max(lags) <= 2


def test_a_bug_while_a_checkpoint_is_written_leaves_that_checkpoint(
    small_run: MakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = tensor_files.save_file

    def slow(*arguments: Any) -> None:
        time.sleep(1.0)
        written(*arguments)

    monkeypatch.setattr(tensor_files, "save_file", slow)
    config = small_run(checkpoint_every=1)
    run = set_up(config)
    update = run.update

    def update_once(groups: tuple[Group, ...]) -> UpdateMetrics:
        assert run.done == 0, "a bug"
        return update(groups)

    run.update = update_once  # type: ignore[method-assign]
    with pytest.raises(AssertionError, match="a bug"):
        iterate(run)
    assert [path.name for path in (config.output / "checkpoints").iterdir()] == ["step_000001"]
