"""Whole runs of supervised training: they learn, go on where they were, and give what GRPO and eval start from."""

import json
import shutil
import signal
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from rank_processes import run_ranks
from reach_demonstrations import ACTIONS, UNVARIED, sft_config, write_reach_demonstrations
from small_runs import save_small_checkpoint, saved_state, small_config

from vla_train.cli import main
from vla_train.display import Display
from vla_train.errors import DataError
from vla_train.evaluation.evaluate import read_episodes
from vla_train.loop import train
from vla_train.report import write_report
from vla_train.run.identity import split_warning, start_of
from vla_train.run.tracking import read_records
from vla_train.sft.config import SftConfig
from vla_train.sft.loop import iterate, set_up, sft
from vla_train.sft.run import SftRun
from vla_train.trainer.checkpoint_folder import list_checkpoints
from vla_train.trainer.parallel import ONE_RANK, Ranks
from vla_train.types import TrainBatch

pytestmark = pytest.mark.usefixtures("one_thread")
MakeSft = Callable[..., SftConfig]


@pytest.fixture(scope="module")
def demonstrations(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_reach_demonstrations(tmp_path_factory.mktemp("demonstrations") / "reach")


@pytest.fixture
def make_sft(demonstrations: Path, small_checkpoint: Path, tmp_path: Path) -> MakeSft:
    return partial(sft_config, demonstrations, small_checkpoint, tmp_path / "sft")


@pytest.fixture(scope="module")
def taught(demonstrations: Path, tmp_path_factory: pytest.TempPathFactory) -> SftConfig:
    """A run that has learnt four episodes by heart."""
    folder = tmp_path_factory.mktemp("taught")
    config = sft_config(
        demonstrations,
        save_small_checkpoint(folder / "checkpoint", num_layers=2),
        folder / "sft",
        steps=160,
        batch_rows=12,
        checkpoint_every=80,
        augment=UNVARIED,
        optim={"learning_rate": 6e-3, "beta2": 0.95},
        validation_fraction=0.0,
        statistics="data",
        eval={"every": 80, "before_training": True},
    )
    sft(config)
    return config


def test_four_episodes_are_learnt_by_heart(taught: SftConfig) -> None:
    records = read_records(taught.output, "iteration")
    assert records[0]["update/loss"] > 4
    assert records[-1]["update/loss"] < 0.2
    assert records[-1]["update/token_accuracy"] > 0.95
    evaluations = read_records(taught.output, "eval")
    assert [record["iteration"] for record in evaluations] == [0, 80, 160]
    assert (evaluations[-1]["success_rate"], evaluations[-1]["success_rate_t1.0"]) == (1.0, 1.0)


def test_a_policy_that_was_taught_plays_the_demonstrated_actions_through_eval(taught: SftConfig, tmp_path: Path) -> None:
    main(["eval", "--checkpoint", str(taught.output), "--output", str(tmp_path / "eval"), "--display", "none"])
    results = json.loads((tmp_path / "eval" / "results.json").read_text())
    assert (results["temperatures"], results["success_rate"], results["episodes"]) == ([0.0, 1.0], 1.0, 4)
    lengths = {episode.length for episode in read_episodes(tmp_path / "eval" / "episodes.jsonl")}
    assert lengths == {len(ACTIONS)}


def test_statistics_of_the_data_are_written_into_the_checkpoint(taught: SftConfig) -> None:
    policy = taught.output / "checkpoints" / "step_000160" / "policy"
    statistics = json.loads((policy / "dataset_statistics.json").read_text())["demonstrations"]
    np.testing.assert_allclose(statistics["action"]["q01"], [0.5, -1.0], atol=1e-6)
    np.testing.assert_allclose(statistics["action"]["q99"], [0.5, 1.0], atol=1e-6)
    assert statistics["num_trajectories"] == 4
    config = json.loads((policy / "config.json").read_text())
    assert (config["unnorm_key"], config["gripper"]) == ("demonstrations", None)


def test_grpo_goes_on_from_it(taught: SftConfig, tmp_path: Path) -> None:
    train(small_config(taught.output, tmp_path / "grpo", iterations=1))
    (record,) = read_records(tmp_path / "grpo", "iteration")
    assert record["rollout/success_rate"] == 1.0


def test_the_report_shows_how_it_learnt(taught: SftConfig) -> None:
    page = write_report(taught.output).read_text()
    for text in ("complete: 160 of 160 steps", "Token accuracy", "Cross-entropy", "evaluation (greedy)", str(taught.data)):
        assert text in page


def state_of(config: SftConfig) -> dict[str, np.ndarray]:
    return saved_state(config.output, config.steps)


def curve(config: SftConfig) -> list[tuple[int, float]]:
    return [(record["iteration"], record["update/loss"]) for record in read_records(config.output, "iteration")]


def test_a_resumed_run_equals_an_unbroken_one_to_the_bit(make_sft: MakeSft, tmp_path: Path) -> None:
    config = make_sft(eval={"every": 12})
    sft(config)
    broken = replace(config, output=tmp_path / "broken")
    run = SftRun(broken, ranks=ONE_RANK, display=Display("none"))
    for _ in range(7):
        run.step()
        if run.checkpoint_due:
            run.save()
    run.saver.finish()
    run.close()  # the seventh step is lost
    sft(broken)
    assert curve(broken) == curve(config)
    expected = state_of(config)
    for name, value in state_of(broken).items():
        np.testing.assert_array_equal(value, expected[name], err_msg=name)


def train_in_two_parts(ranks: Ranks, config: SftConfig) -> None:
    """A signal to one rank ends the first part on all of them."""
    torch.set_num_threads(1)
    run = set_up(config)
    step = run.step

    def signalled() -> None:
        step()
        if run.done == 2 and ranks.rank == 1:
            signal.raise_signal(signal.SIGTERM)

    run.step = signalled  # type: ignore[method-assign]
    with pytest.raises(SystemExit):
        iterate(run)
    assert run.done == 2
    iterate(set_up(config))


@pytest.mark.parametrize("sharding", ["shard", "replicate"])
def test_two_ranks_give_the_weights_of_one_also_after_a_signal(make_sft: MakeSft, tmp_path: Path, sharding: str) -> None:
    alone = make_sft(steps=4, optim={"microbatch_rows": 3}, eval={"every": 4})
    sft(alone)
    together = replace(alone, output=tmp_path / "together", optim=replace(alone.optim, sharding=sharding))
    run_ranks(train_in_two_parts, 2, together)
    np.testing.assert_allclose(curve(together), curve(alone), rtol=1e-5)
    ours, theirs = read_records(alone.output, "eval")[0], read_records(together.output, "eval")[0]
    assert theirs["validation/loss"] == pytest.approx(ours["validation/loss"], rel=1e-3)
    assert theirs["episodes"] == 4
    expected = state_of(alone)
    for name, value in state_of(together).items():
        if name.startswith("weight."):
            np.testing.assert_allclose(value, expected[name], atol=2e-3, err_msg=name)


def test_it_starts_from_random_weights_of_a_size_too(make_sft: MakeSft) -> None:
    config = make_sft(steps=1, batch_rows=2, policy={"checkpoint": None, "size": "tiny"})
    sft(config)
    (record,) = read_records(config.output, "iteration")
    assert 3 < record["update/loss"] < 8


def test_adapters_are_taught_alone(make_sft: MakeSft) -> None:
    config = make_sft(steps=2, policy={"lora_rank": 2})
    sft(config)
    assert all(".lora_" in name or name == "step" for name in state_of(config))


def test_a_run_that_is_done_does_nothing_more(make_sft: MakeSft) -> None:
    config = make_sft(steps=2, eval={"every": 2})
    sft(config)
    sft(config)  # nothing is left to do
    assert len(read_records(config.output, "eval")) == 1


def test_the_command_line_trains_and_says_what_to_do_next(
    demonstrations: Path, small_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--env.id", "reach_env:Reach-v0", "--env.success", "terminated", "--policy.chunk-size", "2"]
    options += ["--policy.checkpoint", str(small_checkpoint), "--steps", "2", "--batch-rows", "4", "--eval.every", "0"]
    main(["sft", "--data", str(demonstrations), "--output", str(tmp_path / "run"), "--display", "plain", *options])
    shown = capsys.readouterr().out
    assert "18 samples of 3 episodes, 1 episodes for validation" in shown
    assert f"train --policy.checkpoint {tmp_path}/run --output {tmp_path}/run-grpo --train-fraction 0.8 --split-seed 0" in shown
    assert "--policy.chunk-size 2 --env.id reach_env:Reach-v0 --env.success terminated" in shown


# --- what is refused


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_rows": 64}, "batch_rows 64 is more than the 18 samples of the 3 episodes"),
        (
            {"env": {"id": "InvertedPendulum-v5", "image_key": "render", "instruction": "go", "success": "terminated"}},
            "2 numbers",
        ),
    ],
)
def test_what_cannot_work_is_refused_and_leaves_no_folder(make_sft: MakeSft, changes: dict, message: str) -> None:
    config = make_sft(**changes)
    with pytest.raises(ValueError, match=message):
        SftRun(config, ranks=ONE_RANK, display=Display("none"))
    assert not config.output.exists()


def test_a_folder_without_demonstrations_is_refused(make_sft: MakeSft, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is not a dataset of demonstrations"):
        SftRun(replace(make_sft(), data=tmp_path), ranks=ONE_RANK, display=Display("none"))


def test_a_folder_of_another_kind_of_run_or_of_other_data_is_refused(
    make_sft: MakeSft, small_checkpoint: Path, tmp_path: Path
) -> None:
    config = make_sft(steps=1)
    sft(config)
    with pytest.raises(ValueError, match="holds a run of sft"):
        train(small_config(small_checkpoint, config.output, iterations=1))
    with pytest.raises(ValueError, match="holds a run with batch_rows 8, not 4"):
        sft(replace(config, batch_rows=4))


def test_statistics_that_are_replaced_cannot_be_spoken_of(make_sft: MakeSft) -> None:
    with pytest.raises(ValueError, match=r"policy\.gripper libero speaks of a checkpoint's statistics, and these are replaced"):
        make_sft(statistics="data", policy={"gripper": "libero"})
    make_sft(policy={"gripper": "libero"})


def test_damaged_checkpoints_are_not_written_over(make_sft: MakeSft) -> None:
    config = make_sft(steps=1)
    sft(config)
    (config.output / "checkpoints" / "step_000001" / "trainer-0000-0001.safetensors").write_bytes(b"")
    with pytest.raises(ValueError, match=r"all checkpoints in .* are damaged"):
        sft(config)
    assert len(read_records(config.output, "iteration")) == 1


def test_a_picture_that_cannot_be_read_ends_the_run_and_what_was_done_is_saved(
    make_sft: MakeSft, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_sft(steps=12)
    run = SftRun(config, ranks=ONE_RANK, display=Display("none"))
    rows_of = run._batches.of_step

    def until_the_third(step: int) -> TrainBatch:
        if step == 3:
            raise ValueError("a picture is damaged")
        return rows_of(step)

    monkeypatch.setattr(run._batches, "of_step", until_the_third)
    with pytest.raises(DataError, match="is damaged: a picture is damaged; 3 steps are saved"):
        iterate(run)
    assert [path.name for path in list_checkpoints(config.output)] == ["step_000003"]


def test_a_picture_that_validation_cannot_read_ends_the_run_in_the_same_way(
    make_sft: MakeSft, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_sft(eval={"every": 3})
    run = SftRun(config, ranks=ONE_RANK, display=Display("none"))

    def damaged() -> TrainBatch:
        raise ValueError("a picture is damaged")

    monkeypatch.setattr(run._batches, "of_validation", damaged)
    with pytest.raises(DataError, match="is damaged: a picture is damaged; 3 steps are saved"):
        iterate(run)
    assert [path.name for path in list_checkpoints(config.output)] == ["step_000003"]


def test_a_start_that_has_seen_what_is_held_out_is_told(taught: SftConfig, tmp_path: Path) -> None:
    config = small_config(taught.output, tmp_path / "grpo", iterations=1)
    assert split_warning(start_of(replace(config, train_fraction=0.8))) is None
    assert "set train_fraction 0.8 and split_seed 0" in str(split_warning(start_of(replace(config, train_fraction=0.5))))
    assert split_warning(replace(config, policy=replace(config.policy, checkpoint=None))) is None


def test_rows_that_ranks_cannot_share_are_refused(make_sft: MakeSft) -> None:
    with pytest.raises(ValueError, match="batch_rows 8 must be a multiple of 3 ranks"):
        SftRun(make_sft(), ranks=Ranks(rank=0, size=3), display=Display("none"))


def test_a_run_does_not_go_on_with_other_demonstrations(make_sft: MakeSft, tmp_path: Path) -> None:
    data = write_reach_demonstrations(tmp_path / "growing", num_episodes=3)
    config = replace(make_sft(steps=3, validation_fraction=0.0), data=data)
    sft(config)
    more = replace(config, steps=4)
    with pytest.raises(ValueError, match=r"holds a run with validation_fraction 0.0, not 0.5"):
        sft(replace(more, validation_fraction=0.5))
    shutil.rmtree(data)
    write_reach_demonstrations(data, num_episodes=4)
    with pytest.raises(ValueError, match=r"learnt from 3 episodes of .*growing, which has others now \(4 to learn from\)"):
        sft(more)
    shutil.rmtree(data)
    write_reach_demonstrations(data, num_episodes=3)
    table = data / "meta/episodes/chunk-000/file-000.parquet"
    told = pq.read_table(table)
    other = pa.array([["do something else"]] * 3)
    pq.write_table(told.set_column(told.column_names.index("tasks"), "tasks", other), table)
    with pytest.raises(ValueError, match=r"learnt from 3 episodes of .*growing, which has others now \(3 to learn from\)"):
        sft(more)
    pq.write_table(told, table)
    sft(more)
    assert list_checkpoints(config.output)[-1].name == "step_000004"


def test_pictures_that_cannot_be_read_are_found_out_before_there_is_a_run(make_sft: MakeSft, tmp_path: Path) -> None:
    data = write_reach_demonstrations(tmp_path / "cut", num_episodes=3)
    file = data / "data/chunk-000/file-000.parquet"
    rows = pq.read_table(file)
    name = next(name for name in rows.column_names if "image" in name)
    pictures = pa.array([{"bytes": b"none", "path": None}] * len(rows))
    pq.write_table(rows.set_column(rows.column_names.index(name), name, pictures), file)
    config = replace(make_sft(steps=3), data=data)
    with pytest.raises(ValueError, match="a picture is damaged"):
        sft(config)
    assert not config.output.exists()


def test_rows_that_cannot_be_read_at_the_first_step_leave_nothing_to_go_on_from(
    make_sft: MakeSft, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_sft()
    run = SftRun(config, ranks=ONE_RANK, display=Display("none"))

    def damaged(step: int) -> TrainBatch:
        raise ValueError(f"{config.data}: a picture is damaged")

    monkeypatch.setattr(run._batches, "of_step", damaged)
    with pytest.raises(DataError) as told:
        iterate(run)
    assert str(told.value) == f"{config.data}: a picture is damaged; the same command starts again: nothing was saved yet"
    assert list_checkpoints(config.output) == []
