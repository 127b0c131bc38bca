"""A run's numbers are kept as they were measured, through crashes and resumes."""

import json
import math
import sys
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.summary.writer import event_file_writer

from vla_train.errors import DamagedFileError
from vla_train.run.tracking import METRICS_FILE, RunLog, read_records


def log_iterations(
    run: Path, iterations: range, *, resume: int | None, offset: float = 0.0, trackers: tuple[str, ...] = ()
) -> None:
    log = RunLog(run, trackers=trackers, config={"seed": 0}, resume_iteration=resume)
    for iteration in iterations:
        log.log("iteration", iteration, {"rollout/success_rate": iteration / 10 + offset})
    log.close()


def test_records_come_back_as_they_were_logged(tmp_path: Path) -> None:
    log = RunLog(tmp_path, trackers=(), config={"seed": 3, "env": {"id": "Libero-v0"}})
    log.log("iteration", 1, {"update/loss": -0.5, "rollout/episodes": 16})
    log.log("eval", 1, {"success_rate": 0.25, "tasks": [{"task_id": 0, "interval": [0.1, 0.4]}]})
    log.close()
    iteration, evaluation = read_records(tmp_path)
    assert (iteration["kind"], iteration["iteration"], iteration["update/loss"]) == ("iteration", 1, -0.5)
    assert evaluation["tasks"] == [{"task_id": 0, "interval": [0.1, 0.4]}]
    assert read_records(tmp_path, "eval") == [evaluation]
    assert json.loads((tmp_path / "config.json").read_text()) == {"seed": 3, "env": {"id": "Libero-v0"}}


def test_each_record_is_on_disk_before_the_next_is_made(tmp_path: Path) -> None:
    log = RunLog(tmp_path, trackers=(), config={})
    log.log("iteration", 1, {})
    assert len(read_records(tmp_path)) == 1
    log.close()


def test_a_last_line_cut_short_by_a_crash_is_left_out(tmp_path: Path) -> None:
    log_iterations(tmp_path, range(1, 4), resume=None)
    file = tmp_path / METRICS_FILE
    file.write_text(file.read_text()[:-10])
    assert [record["iteration"] for record in read_records(tmp_path)] == [1, 2]
    log_iterations(tmp_path, range(3, 5), resume=2)
    assert [record["iteration"] for record in read_records(tmp_path)] == [1, 2, 3, 4]


@pytest.mark.parametrize(
    "damage",
    [b"{not json", b"5", b'{"kind": "iteration"}', b"[]", b'{"kind": "iteration", "iteration": null}', b"\xff\xfe", b"\0\0"],
)
def test_a_damaged_line_is_an_error_that_names_it(damage: bytes, tmp_path: Path) -> None:
    log_iterations(tmp_path, range(1, 3), resume=None)
    file = tmp_path / METRICS_FILE
    first, second, _ = file.read_bytes().split(b"\n")
    file.write_bytes(b"\n".join([first, damage, second, b""]))
    with pytest.raises(DamagedFileError, match=r"metrics\.jsonl, line 2"):
        read_records(tmp_path)


def test_a_resumed_run_drops_what_came_after_its_checkpoint(tmp_path: Path) -> None:
    log_iterations(tmp_path, range(1, 6), resume=None)
    log_iterations(tmp_path, range(4, 7), resume=3, offset=0.05)
    records = read_records(tmp_path)
    assert [record["iteration"] for record in records] == [1, 2, 3, 4, 5, 6]
    assert [record["rollout/success_rate"] for record in records] == pytest.approx([0.1, 0.2, 0.3, 0.45, 0.55, 0.65])


def test_a_run_that_starts_afresh_keeps_nothing(tmp_path: Path) -> None:
    log_iterations(tmp_path, range(1, 6), resume=None)
    log_iterations(tmp_path, range(1, 2), resume=None)
    assert [record["iteration"] for record in read_records(tmp_path)] == [1]


def test_numbers_that_are_not_finite_are_null_and_stay_out_of_curves(tmp_path: Path) -> None:
    log = RunLog(tmp_path, trackers=("tensorboard",), config={})
    log.log("iteration", 1, {"update/loss": math.nan, "ratio": math.inf, "nested": {"deep": [-math.inf]}, "good": 1.0})
    log.close()
    (record,) = read_records(tmp_path)
    assert (record["update/loss"], record["ratio"], record["nested"]) == (None, None, {"deep": [None]})
    assert events(tmp_path).Tags()["scalars"] == ["good"]


def test_tensorboard_shows_what_was_logged(tmp_path: Path) -> None:
    log = RunLog(tmp_path, trackers=("tensorboard",), config={})
    for iteration in (1, 2):
        log.log("iteration", iteration, {"rollout/success_rate": iteration / 4})
    log.log("eval", 2, {"success_rate": 0.75, "tasks": []})
    log.close()
    found = events(tmp_path)
    assert [(event.step, event.value) for event in found.Scalars("rollout/success_rate")] == [(1, 0.25), (2, 0.5)]
    assert [(event.step, event.value) for event in found.Scalars("eval/success_rate")] == [(2, 0.75)]


@pytest.mark.parametrize(("resume", "expected"), [(3, [1, 2, 3, 4]), (None, [1, 2])])
def test_tensorboard_hides_what_a_resumed_or_fresh_run_does_again(
    resume: int | None, expected: list[int], tmp_path: Path
) -> None:
    log_iterations(tmp_path, range(1, 6), resume=None, trackers=("tensorboard",))
    log_iterations(tmp_path, range((resume or 0) + 1, expected[-1] + 1), resume=resume, offset=0.5, trackers=("tensorboard",))
    curve = events(tmp_path).Scalars("rollout/success_rate")
    assert [event.step for event in curve] == expected
    assert curve[-1].value == pytest.approx(expected[-1] / 10 + 0.5)


def test_a_run_resumed_within_the_second_hides_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(event_file_writer, "_global_uid", event_file_writer.AtomicCounter(9))  # names end with .9 and .10
    log_iterations(tmp_path, range(1, 4), resume=None, trackers=("tensorboard",))
    log_iterations(tmp_path, range(3, 5), resume=2, offset=0.5, trackers=("tensorboard",))
    curve = events(tmp_path).Scalars("rollout/success_rate")
    assert [(event.step, round(event.value, 3)) for event in curve] == [(1, 0.1), (2, 0.2), (3, 0.8), (4, 0.9)]


def test_other_files_beside_tensorboards_are_let_be(tmp_path: Path) -> None:
    (tmp_path / "tensorboard").mkdir()
    (tmp_path / "tensorboard/events.out.tfevents.copy").touch()
    log_iterations(tmp_path, range(1, 3), resume=None, trackers=("tensorboard",))
    assert len(read_records(tmp_path)) == 2


def test_an_unknown_tracker_is_refused_with_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"'mlflow'.*tensorboard, wandb, trackio"):
        RunLog(tmp_path, trackers=("mlflow",), config={})


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_a_missing_tracker_says_what_to_install(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, name, None)  # makes the import fail, as without the package
    with pytest.raises(ImportError, match=f"pip install {name}"):
        RunLog(tmp_path, trackers=(name,), config={})


def events(run: Path) -> EventAccumulator:
    accumulator = EventAccumulator(str(run / "tensorboard"))
    accumulator.Reload()
    return accumulator
