"""`python -m vla_train bench` on a tiny policy and a tiny env."""

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from small_runs import command_line

from vla_train.bench import bench as bench_module
from vla_train.bench.machine import Machine
from vla_train.bench.measure import PolicyAlone, batch_sizes, update_rate
from vla_train.cli import main
from vla_train.command_line import parse_bench
from vla_train.config import EnvConfig, TrainConfig
from vla_train.envs.worker import ThreadWorker
from vla_train.recipes import RECIPES
from vla_train.trainer.group_trainer import GroupTrainer
from vla_train.types import Group, Observation

MakeRun = Callable[..., TrainConfig]

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def workers(monkeypatch: pytest.MonkeyPatch) -> list[ThreadWorker]:
    """Those that were started."""
    started: list[ThreadWorker] = []
    start = ThreadWorker.start

    def watched(worker: ThreadWorker) -> None:
        started.append(worker)
        start(worker)

    monkeypatch.setattr(ThreadWorker, "start", watched)
    return started


def bench(config: TrainConfig, *options: str) -> None:
    main(["bench", *command_line(config), "--seconds", "0.3", *options])


def assert_closed(workers: list[ThreadWorker]) -> None:
    assert len(workers) == 2
    assert all(worker._thread is None for worker in workers)


def test_all_is_measured_shown_and_written(
    small_run: MakeRun, workers: list[ThreadWorker], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    run = small_run(display="plain")
    bench(run, "--json", f"{tmp_path}/bench.json")
    shown = capsys.readouterr().out
    for text in (
        "starting 2 workers of 2 reach_env:Reach-v0 envs",
        "cores, no GPU",
        "policy, 2 rows a call",
        "policy, 4 rows a call",
        "of its best batch",
        "envs, random actions",
        "both, pipelined",
        "of the slower one alone",
        "update",
        "of playing alone",
        "An iteration of 2 groups of 4 episodes, at most 24 chunks,",
        "this machine: ",
        f"written to {tmp_path}/bench.json",
    ):
        assert text in shown
    assert not run.output.exists()
    assert_closed(workers)

    results = json.loads((tmp_path / "bench.json").read_text())
    assert list(results["policy_chunks_per_s"]) == ["2", "4"]
    policy, envs = max(results["policy_chunks_per_s"].values()), results["envs_chunks_per_s"]
    both, update = results["both_chunks_per_s"], results["update_chunks_per_s"]
    assert min(policy, envs, both, update) > 0
    assert results["overlap"] == pytest.approx(both / min(policy, envs))
    assert results["iteration_chunks_per_s"] == pytest.approx(1 / (1 / both + 1 / update))
    assert results["iteration_s"] == pytest.approx(results["iteration_chunks"] * (1 / both + 1 / update))
    assert results["machine"]["gpu"] is None
    assert results["gpu_memory"] is None
    assert results["limit"] in shown
    assert all(change in shown for change in results["changes"])
    assert results["config"]["seconds"] == 0.3
    assert results["config"]["rollout"]["group_size"] == 4


def test_a_policy_that_samples_beside_the_trained_one_is_measured(small_run: MakeRun, workers: list[ThreadWorker]) -> None:
    bench(small_run(rollout={"max_staleness": 1, "max_policy_batch": 3}, optim={"epochs": 2}))
    assert_closed(workers)


def test_only_a_signal_makes_an_update(small_run: MakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    update = GroupTrainer.update

    def watched(trainer: GroupTrainer, groups, **options):
        metrics = update(trainer, groups, **options)
        made.append((groups, metrics))
        return metrics

    monkeypatch.setattr(GroupTrainer, "update", watched)
    bench(small_run())
    for groups, metrics in made:
        assert {group.success_rate for group in groups} == {0.5}
        assert metrics.advantage_abs > 0
        assert metrics.loss_metrics["sampling_gap"] < 1e-3
    assert {trajectory.observations["image"].shape[1:] for group in made[-1][0] for trajectory in group.trajectories} == {
        (28, 28, 3)
    }


# --- options


def test_it_takes_the_options_of_train() -> None:
    config = parse_bench(["--recipe", "one-gpu", "--policy.checkpoint", "folder", "--env.num-workers", "5"])
    assert (config.env.num_workers, config.policy.checkpoint, config.seconds, config.json) == (5, "folder", 12.0, None)
    assert config.rollout == RECIPES["one-gpu"]().rollout
    assert parse_bench([]).policy == RECIPES["demo"]().policy


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--seconds", "0"], "seconds must be positive, got 0.0"),
        (["--json", "no/such/folder/file"], "json must be a file in a folder that exists, got no/such/folder/file"),
        (["--json", "/"], "json must be a file in a folder that exists, got /"),
        (["--json", "/dev/null"], "json must be a file in a folder that exists, got /dev/null"),
        (
            ["--json", "/proc/bench.json"],
            "json: /proc/bench.json cannot be written (No such file or directory): choose another",
        ),
        (["--json", __file__], "holds something else than results of bench: choose another"),
        (["--rollout.group-size", "1"], "rollout.group_size must be at least 2, got 1"),
        (["--recipe", "nope"], "unknown recipe 'nope'"),
        (["--recipe", "one-gpu"], "name one with --policy.checkpoint"),
        (["--policy.checkpoint", "no/such/folder"], "no/such/folder"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_cannot_be_measured_is_refused_before_anything_starts(
    options: list[str], named: str, workers: list[ThreadWorker], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["bench", *options])
    captured = capsys.readouterr()
    assert stop.value.code == 2
    assert named in " ".join((captured.out + captured.err).replace("│", " ").split())
    assert workers == []


def test_ranks_are_refused(small_run: MakeRun, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(SystemExit):
        bench(small_run())
    assert "start it without torchrun" in capsys.readouterr().err


# --- ends


def test_workers_are_closed_where_the_policy_does_not_fit(small_run: MakeRun, workers: list[ThreadWorker]) -> None:
    run = small_run(policy={"chunk_size": 3})
    with pytest.raises(SystemExit) as stop:
        bench(run)
    assert stop.value.code == 2
    assert_closed(workers)


@pytest.mark.parametrize("place", [(PolicyAlone, "decide"), (GroupTrainer, "update")])
def test_workers_are_closed_where_something_fails(
    place: tuple[type, str], small_run: MakeRun, workers: list[ThreadWorker], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object, **options: object) -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(*place, fail)
    with pytest.raises(ZeroDivisionError):
        bench(small_run())
    assert_closed(workers)


def test_too_little_gpu_memory_is_one_line(
    small_run: MakeRun, workers: list[ThreadWorker], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def overflow(*arguments: object, **options: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    gpu = Machine(cores=2, gpu="a small card", gpu_gb=8.0)
    monkeypatch.setattr(bench_module, "machine_of", lambda device: gpu)
    monkeypatch.setattr(GroupTrainer, "update", overflow)
    with pytest.raises(SystemExit) as stop:
        bench(small_run())
    assert stop.value.code == 1
    errors = capsys.readouterr().err
    assert "Traceback" not in errors
    assert errors.splitlines()[-1].startswith("error: the update does not fit into the 8 GB of a small card: ")
    assert_closed(workers)


@pytest.mark.parametrize("place", [(PolicyAlone, "decide"), (GroupTrainer, "update")])
def test_ctrl_c_ends_it(
    place: tuple[type, str],
    small_run: MakeRun,
    workers: list[ThreadWorker],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    def interrupt(*arguments: object, **options: object) -> None:
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(*place, interrupt)
    with pytest.raises(SystemExit) as stop:
        bench(small_run(display="plain"), "--json", f"{tmp_path}/bench.json")
    assert stop.value.code == 130
    assert capsys.readouterr().out.endswith("interrupted: nothing was written\n")
    assert not (tmp_path / "bench.json").exists()
    assert_closed(workers)


# --- which batches are measured


@pytest.mark.parametrize(
    ("num_workers", "envs_per_worker", "max_policy_batch", "sizes"),
    [
        (2, 8, 256, [8, 16]),
        (1, 8, 256, [8]),
        (3, 32, 64, [32, 64]),
        (8, 4, 256, [4, 8, 16, 32]),
        (5, 4, 256, [4, 8, 16, 20]),
        (5, 4, 13, [4, 8, 12]),
        (4, 64, 32, [32]),
    ],
)
def test_batches_are_whole_workers_as_far_as_one_call_takes_them(
    num_workers: int, envs_per_worker: int, max_policy_batch: int, sizes: list[int]
) -> None:
    env = EnvConfig(num_workers=num_workers, envs_per_worker=envs_per_worker)
    assert batch_sizes(env, max_policy_batch) == sizes


class TrainerOnPaper:
    """Takes 1 s and 0.1 s a row, and 100 s the first time, as one that compiles."""

    def __init__(self) -> None:
        self.rows: list[int] = []

    def update(self, groups: list[Group], **_: Any) -> SimpleNamespace:
        self.rows.append(sum(len(trajectory) for group in groups for trajectory in group.trajectories))
        return SimpleNamespace(rows=self.rows[-1], duration_s=100.0 if len(self.rows) == 1 else 1 + self.rows[-1] / 10)


def test_an_update_is_measured_on_enough_rows_however_long_the_first_one_compiles(small_run: MakeRun) -> None:
    trainer = TrainerOnPaper()
    seen = Observation(arrays={"image": np.zeros((1, 2, 2, 3), np.uint8)}, instructions=("",))
    rate = update_rate(
        cast(GroupTrainer, trainer), seen, {"token_ids": np.zeros((1, 8))}, small_run(), episode_decisions=64, seconds=20
    )
    assert trainer.rows == [16, 16, 32, 64, 64, 64, 64]
    assert rate == pytest.approx(64 / 7.4)
