"""A run's own bookkeeping: scores of checkpoints, several ranks, what stays when set-up fails."""

import dataclasses
import math
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from small_runs import command_line

import vla_train.evaluation.of_checkpoint
import vla_train.run.run
from vla_train.config import EnvConfig, EvaluateConfig, RolloutConfig, TrainConfig
from vla_train.display import Display
from vla_train.evaluation.of_checkpoint import CheckpointEvaluation
from vla_train.loop import set_up, train
from vla_train.pipeline.episodes import evaluation_episodes
from vla_train.pipeline.rollout_result import RolloutStats, combine_stats
from vla_train.run.run import Run
from vla_train.run.tracking import read_records
from vla_train.trainer.checkpoint import load_checkpoint
from vla_train.trainer.checkpoint_folder import best_checkpoint
from vla_train.trainer.parallel import ONE_RANK, Ranks, useful_slots

MakeRun = Callable[..., TrainConfig]


def test_a_checkpoint_knows_its_score_also_when_its_evaluation_was_interrupted(small_run: MakeRun, tmp_path: Path) -> None:
    evaluation = {"every": 2, "episodes_per_task": 4}
    config = small_run(iterations=2, eval=evaluation)
    seed = evaluation_episodes([0], {}, config.eval, temperature=0.0, train_fraction=0.8, split_seed=0)[2].seed
    kwargs = {"fault": "terminate", "fault_seed": str(seed), "marker": str(tmp_path / "happened")}
    config = small_run(iterations=2, eval=evaluation, env={"kwargs": kwargs})
    with pytest.raises(SystemExit):
        train(config)
    assert best_checkpoint(config.output) is None
    train(config)
    newest = config.output / "checkpoints" / "step_000002"
    assert best_checkpoint(config.output) == newest
    (record,) = read_records(config.output, "eval")
    assert load_checkpoint(newest).score == record["success_rate"]
    assert record["episodes"] == 4


@pytest.mark.parametrize("max_staleness", [0, 1])
def test_a_temperature_that_falls_is_that_of_sampling_and_of_the_update(max_staleness: int, small_run: MakeRun) -> None:
    rollout = {"temperature": 2.0, "final_temperature": 0.5, "max_staleness": max_staleness}
    config = small_run(rollout=rollout, optim={"learning_rate": 1e-9})  # all that could make a gap is the temperature
    train(config)
    records = read_records(config.output, "iteration")
    assert [record["rollout/temperature"] for record in records] == [2.0, 1.5, 1.0, 0.5]
    assert [record["update/updates"] > 0 for record in records].count(True) > 1
    assert all(record["update/sampling_gap"] < 1e-5 for record in records if record["update/updates"])


def test_a_set_up_that_fails_leaves_a_folder_that_was_there_as_it_was(small_run: MakeRun) -> None:
    config = small_run(policy={"checkpoint": "no/such/folder"})
    config.output.mkdir()
    (config.output / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="no/such/folder"):
        set_up(config)
    assert (config.output / "notes.txt").read_text() == "mine"


def test_groups_that_cannot_be_shared_between_ranks_are_refused(small_run: MakeRun) -> None:
    with pytest.raises(ValueError, match="multiple of 3 ranks"):
        Run(small_run(), ranks=Ranks(rank=0, size=3), display=Display("none"))
    assert not small_run().output.exists()


def test_ranks_start_no_more_envs_than_can_play_at_once() -> None:
    env = EnvConfig(num_workers=3, envs_per_worker=64)
    rollout = RolloutConfig(groups_per_iteration=2, group_size=8, deterministic=True)
    assert useful_slots(env, rollout).envs_per_worker == 6
    assert useful_slots(dataclasses.replace(env, envs_per_worker=4), rollout).envs_per_worker == 4
    assert useful_slots(env, dataclasses.replace(rollout, deterministic=False)) == env


def test_a_run_is_done_where_its_checkpoint_says_so(small_run: MakeRun) -> None:
    config = small_run(iterations=1)
    train(config)
    run = Run(config, ranks=ONE_RANK, display=Display("none"))
    try:
        assert (run.done, run.complete, run.checkpoint_due, run.evaluation_due) == (1, True, False, False)
    finally:
        run.close()


def make_stats(**changes) -> RolloutStats:
    zeros = {f.name: 0 for f in dataclasses.fields(RolloutStats)}
    return RolloutStats(**{**zeros, **changes})


def test_stats_of_ranks_are_added_and_rates_weighted_by_what_was_played() -> None:
    parts = [
        make_stats(groups_kept=1, groups_rejected=2, success_rate=0.5, decisions=30, duration_s=2.0, overlap_efficiency=0.6),
        make_stats(groups_kept=1, groups_rejected=0, success_rate=0.1, decisions=10, duration_s=4.0, overlap_efficiency=1.0),
    ]
    whole = combine_stats(parts)
    assert (whole.groups_kept, whole.groups_rejected, whole.decisions, whole.duration_s) == (2, 2, 40, 4.0)
    assert whole.success_rate == pytest.approx((3 * 0.5 + 1 * 0.1) / 4)
    assert whole.decisions_per_s == 10.0
    assert whole.overlap_efficiency == pytest.approx(0.8)
    assert combine_stats(parts[:1]) is parts[0]
    assert combine_stats([make_stats(), make_stats()]).success_rate == 0
    carried_over = make_stats(groups_kept=1, decisions=0, overlap_efficiency=math.nan)
    assert combine_stats([parts[0], carried_over]).overlap_efficiency == 0.6
    assert math.isnan(combine_stats([carried_over, carried_over]).overlap_efficiency)


def test_a_run_that_is_done_further_than_asked_for_says_that_it_is_complete(
    small_run: MakeRun, capsys: pytest.CaptureFixture[str]
) -> None:
    train(small_run(iterations=2))
    train(small_run(iterations=1, display="plain"))
    shown = capsys.readouterr().out
    assert "2 iterations done already" in shown
    assert "2 iterations done and no more than 1 were asked for: nothing is left to train" in shown
    assert "2 of 1" not in shown


def test_folders_beside_a_runs_evaluations_are_left_alone(small_run: MakeRun) -> None:
    config = small_run(iterations=1)
    train(config)
    mine, lost = (config.output / "evaluations" / name for name in ("iteration_000009.bak", "iteration_000009"))
    mine.mkdir(parents=True)
    lost.mkdir()
    train(config)
    assert mine.exists()
    assert not lost.exists()


@pytest.mark.parametrize("name", ["run/policy", "no/such/folder"])
def test_a_mistyped_checkpoint_is_refused_before_workers_are_started(
    name: str, small_run: MakeRun, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(vla_train.run.run, "make_workers", lambda *_, **__: pytest.fail("workers were started"))
    monkeypatch.setattr(vla_train.evaluation.of_checkpoint, "make_workers", vla_train.run.run.make_workers)
    (tmp_path / "run" / "other" / "checkpoints").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=f"no checkpoint at {name}"):
        set_up(small_run(policy={"checkpoint": name}))
    with pytest.raises(ValueError, match=f"no checkpoint at {name}"):
        CheckpointEvaluation(EvaluateConfig(checkpoint=name))


@pytest.mark.slow
def test_two_ranks_train_on_the_same_groups_to_the_same_losses_as_one(small_run: MakeRun, tmp_path: Path) -> None:
    # Every group is kept, so that both ways of sharing them give the same ones.
    changes = {"iterations": 2, "rollout": {"min_success_rate": 0.0, "max_success_rate": 1.0}, "eval": {"every": 2}}
    alone = small_run(**changes)
    train(alone)
    together = dataclasses.replace(alone, output=tmp_path / "together")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    common = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "PYTHONPATH": str(Path(__file__).parents[1])}
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "vla_train", "train", *command_line(together)],
            env={**os.environ, **common, "RANK": str(rank), "LOCAL_RANK": str(rank), "CUDA_VISIBLE_DEVICES": ""},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        outputs = [process.communicate(timeout=200)[0] for process in processes]
        assert [process.returncode for process in processes] == [0, 0], "\n".join(outputs)
    finally:
        for process in processes:
            process.kill()
    names = ("update/loss", "update/grad_norm", "update/trajectories", "rollout/success_rate", "rollout/groups_kept")
    ours, theirs = (
        [[record[name] for name in names] for record in read_records(config.output, "iteration")]
        for config in (alone, together)
    )
    np.testing.assert_allclose(theirs, ours, rtol=1e-4, atol=1e-6)
    assert read_records(together.output, "eval")[0]["episodes"] == 4
