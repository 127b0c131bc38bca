"""Whatever ends a run, it goes on from its newest checkpoint, and then gives what an uninterrupted run gives."""

import dataclasses
import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_runs import command_line, run_command, saved_state, small_config

from vla_train.config import TrainConfig
from vla_train.config_json import config_to_json
from vla_train.envs.worker import WorkerError
from vla_train.loop import train
from vla_train.pipeline.episodes import PromptStream
from vla_train.run.tracking import read_records

MakeRun = Callable[..., TrainConfig]
FAULTY_GROUP = 5
"""Two groups an iteration: in the middle of the third one."""


@pytest.fixture(scope="module")
def uninterrupted(small_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> TrainConfig:
    """A run from start to end."""
    config = small_config(small_checkpoint, tmp_path_factory.mktemp("uninterrupted") / "run", keep_checkpoints=4)
    train(config)
    return config


def faulty(make: MakeRun, tmp_path: Path, fault: str, **changes: Any) -> TrainConfig:
    """The same run, but `fault` happens once, in the middle of the third iteration."""
    stream = PromptStream([0], {}, group_size=4, train_fraction=0.8, split_seed=0, seed=0, next_group_id=FAULTY_GROUP)
    kwargs = {"fault": fault, "fault_seed": str(next(stream)[0].seed), "marker": str(tmp_path / "happened")}
    return make(env={"kwargs": kwargs, **changes.pop("env", {})}, **changes)


def losses(config: TrainConfig) -> list[tuple[int, float, float, float]]:
    records = read_records(config.output, "iteration")
    return [(r["iteration"], r["update/loss"], r["update/grad_norm"], r["rollout/success_rate"]) for r in records]


def assert_same_run(run: TrainConfig, expected: TrainConfig, *, exactly: bool = False) -> None:
    """Same losses and final state as the first iterations of `expected`; up to rounding, where batches were cut differently."""
    assert [loss[0] for loss in losses(run)] == list(range(1, run.iterations + 1))
    tolerance = {"rtol": 0, "atol": 0} if exactly else {"rtol": 1e-4, "atol": 1e-5}
    np.testing.assert_allclose(losses(run), losses(expected)[: run.iterations], **tolerance)
    assert any(loss[2] > 0 for loss in losses(run)), "nothing was learnt, so nothing was compared"
    state, expected_state = (saved_state(config.output, run.iterations) for config in (run, expected))
    assert state.keys() == expected_state.keys()
    for name, value in state.items():
        np.testing.assert_allclose(value, expected_state[name], err_msg=name, **tolerance)


def test_a_run_killed_in_the_middle_of_an_iteration_goes_on_as_if_nothing_had_happened(
    small_run: MakeRun, tmp_path: Path
) -> None:
    # One worker, so that batches are cut alike and even rounding is the same.
    config = faulty(small_run, tmp_path, "kill", env={"num_workers": 1, "envs_per_worker": 4})
    killed = run_command("train", *command_line(config))
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert len(losses(config)) == 2
    train(config)
    expected = dataclasses.replace(config, output=tmp_path / "uninterrupted")
    train(expected)
    assert_same_run(config, expected, exactly=True)


def test_a_run_that_trains_during_rollouts_goes_on_as_if_nothing_had_happened(small_run: MakeRun, tmp_path: Path) -> None:
    optim = {"accumulate_during_rollout": True, "minibatch_trajectories": 8}
    config = faulty(small_run, tmp_path, "terminate", optim=optim)
    with pytest.raises(SystemExit):
        train(config)
    train(config)
    expected = dataclasses.replace(config, output=tmp_path / "uninterrupted")
    train(expected)
    assert_same_run(config, expected)
    early = [record["update/rows_during_rollout"] for record in read_records(expected.output, "iteration")]
    assert early[0] == 0
    assert any(early)


@pytest.mark.parametrize("fault", ["terminate", "interrupt"])
def test_a_signal_ends_the_run_with_a_checkpoint_from_which_it_goes_on(
    fault: str, small_run: MakeRun, tmp_path: Path, uninterrupted: TrainConfig
) -> None:
    config = faulty(small_run, tmp_path, fault, checkpoint_every=3)
    with pytest.raises(SystemExit) as stop:
        train(config)
    assert stop.value.code == 130
    checkpoints = sorted(path.name for path in (config.output / "checkpoints").iterdir())
    assert checkpoints == ["step_000002"], "neither due nor evaluated: saved because of the signal"
    train(config)
    assert_same_run(config, uninterrupted)


def test_an_interrupted_command_ends_with_status_130_and_says_how_to_go_on(small_run: MakeRun, tmp_path: Path) -> None:
    ended = run_command("train", *command_line(faulty(small_run, tmp_path, "interrupt", display="plain")))
    assert ended.returncode == 130, ended.stderr
    assert "Traceback" not in ended.stderr
    assert "the same command goes on from the newest checkpoint" in ended.stdout


def test_an_env_that_fails_too_often_ends_the_run_with_a_checkpoint(
    small_run: MakeRun, tmp_path: Path, uninterrupted: TrainConfig
) -> None:
    config = faulty(small_run, tmp_path, "raise", checkpoint_every=4, env={"max_restarts": 0})
    with pytest.raises(WorkerError, match="ZeroDivisionError: the simulator broke"):
        train(config)
    train(config)
    assert_same_run(config, uninterrupted)


def test_an_env_that_fails_once_is_restarted_and_changes_nothing(
    small_run: MakeRun, tmp_path: Path, uninterrupted: TrainConfig
) -> None:
    config = faulty(small_run, tmp_path, "raise")
    train(config)
    assert (tmp_path / "happened").exists()
    assert sum(record["rollout/worker_restarts"] for record in read_records(config.output, "iteration")) == 1
    assert_same_run(config, uninterrupted)


def test_a_run_whose_rollout_overlaps_the_update_is_interrupted_and_goes_on(small_run: MakeRun, tmp_path: Path) -> None:
    config = faulty(small_run, tmp_path, "terminate", rollout={"max_staleness": 1})
    with pytest.raises(SystemExit):
        train(config)
    done = len(losses(config))
    assert 1 <= done < config.iterations
    train(config)
    assert [loss[0] for loss in losses(config)] == list(range(1, config.iterations + 1))
    lags = [record["update/policy_lag"] for record in read_records(config.output, "iteration")]
    assert max(lags) == 1


def test_a_damaged_newest_checkpoint_is_passed_over(
    small_run: MakeRun, uninterrupted: TrainConfig, caplog: pytest.LogCaptureFixture
) -> None:
    config = small_run(iterations=3)
    train(config)
    damaged = config.output / "checkpoints" / "step_000003" / "trainer-0000-0001.safetensors"
    content = bytearray(damaged.read_bytes())
    content[len(content) // 2] ^= 1
    damaged.write_bytes(content)
    train(config)
    assert "step_000003 is damaged" in caplog.text
    assert_same_run(config, uninterrupted)


def test_a_run_whose_checkpoints_are_all_damaged_keeps_its_history(small_run: MakeRun) -> None:
    config = small_run(iterations=2)
    train(config)
    before = (config.output / "metrics.jsonl").read_text()
    for checkpoint in (config.output / "checkpoints").iterdir():
        (checkpoint / "rollout.npz").write_bytes(b"cut short")
    with pytest.raises(ValueError, match=r"all checkpoints .* are damaged"):
        train(config)
    assert (config.output / "metrics.jsonl").read_text() == before


def test_a_complete_run_can_be_made_longer(small_run: MakeRun, uninterrupted: TrainConfig) -> None:
    short = small_run(iterations=2)
    train(short)
    longer = dataclasses.replace(short, iterations=3)
    train(longer)
    assert_same_run(longer, uninterrupted)
    assert json.loads((longer.output / "config.json").read_text())["iterations"] == 3


def test_a_complete_run_started_again_changes_nothing(small_run: MakeRun) -> None:
    config = small_run(iterations=1)
    train(config)
    before = (config.output / "metrics.jsonl").read_text()
    train(config)
    assert (config.output / "metrics.jsonl").read_text() == before


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"seed": 9}, "seed 0, not 9"),
        ({"env": {"id": "reach_env:ReachPixels-v0"}}, "env.id"),
        ({"env": {"kwargs": {"fault": "none"}}}, "env.kwargs"),
        ({"env": {"max_episode_steps": 4}}, "env.max_episode_steps"),
        ({"policy": {"lora_rank": 2}}, "policy.lora_rank"),
        ({"rollout": {"group_size": 2}}, "rollout.group_size"),
        ({"rollout": {"temperature": 1.0}}, "rollout.temperature"),
    ],
    ids=str,
)
def test_a_run_does_not_go_on_as_another(changes: dict[str, Any], named: str, small_run: MakeRun) -> None:
    config = small_run()
    (config.output / "checkpoints" / "step_000001").mkdir(parents=True)
    (config.output / "config.json").write_text(json.dumps(config_to_json(config)))
    with pytest.raises(ValueError, match=named):
        train(small_run(**changes))


@pytest.mark.parametrize("content", ["[]", "{", '{"seed": 0, "env": {}, "policy": []}', '{"seed": 0}'])
def test_a_config_that_is_none_is_an_error_that_names_it(content: str, small_run: MakeRun) -> None:
    config = small_run()
    (config.output / "checkpoints" / "step_000001").mkdir(parents=True)
    (config.output / "config.json").write_text(content)
    with pytest.raises(ValueError, match=r"config\.json is damaged"):
        train(config)


def test_a_folder_that_holds_a_run_is_left_alone_where_resuming_is_not_wanted(small_run: MakeRun) -> None:
    (small_run().output / "checkpoints" / "step_000001").mkdir(parents=True)
    with pytest.raises(ValueError, match="holds a run already"):
        train(small_run(resume=False))
