"""What is saved in the end does not hang on the checkpoint before, and Ctrl-C is heard while it is written."""

import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vla_train.config import TrainConfig
from vla_train.envs.worker import WorkerError
from vla_train.loop import iterate, set_up
from vla_train.run.run import Run
from vla_train.trainer import saving, tensor_files
from vla_train.trainer.checkpoint_folder import list_checkpoints
from vla_train.trainer.group_trainer import UpdateMetrics
from vla_train.types import Group

MakeRun = Callable[..., TrainConfig]


def end_with(run: Run, how: Callable[[], object]) -> None:
    """Let it happen after the second update."""
    update = run.update

    def ended(groups: tuple[Group, ...]) -> UpdateMetrics:
        metrics = update(groups)
        if run.done == 2:
            how()
        return metrics

    run.update = ended  # type: ignore[method-assign]


def lose_a_worker() -> None:
    raise WorkerError("the last straw")


def interrupt() -> None:
    signal.raise_signal(signal.SIGINT)


@pytest.mark.parametrize(("how", "error"), [(lose_a_worker, WorkerError), (interrupt, SystemExit)])
def test_the_present_state_is_saved_though_the_checkpoint_before_could_not_be_written(
    how: Callable[[], None], error: type[BaseException], small_run: MakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = tensor_files.save_file

    def save_file(tensors: Any, path: Path) -> None:
        if path.parent.name.startswith(".writing-step_000001-"):
            raise OSError(28, "No space left on device")
        written(tensors, path)

    monkeypatch.setattr(tensor_files, "save_file", save_file)
    monkeypatch.setattr(saving, "free_host_bytes", lambda: 1 << 40)
    config = small_run()
    run = set_up(config)
    monkeypatch.setattr(run.saver, "check", lambda: None)  # the run ends before it hears of it
    end_with(run, how)
    with pytest.raises(error):
        iterate(run)
    assert [path.name for path in list_checkpoints(config.output)] == ["step_000002"]


def broken() -> None:
    raise ZeroDivisionError


@pytest.mark.parametrize("how", [lose_a_worker, interrupt, broken])
def test_a_second_signal_while_the_last_checkpoint_is_written_is_the_last_word(
    how: Callable[[], None], small_run: MakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, lines = set_up(small_run(checkpoint_every=100)), list[str]()
    monkeypatch.setattr(run.display, "line", lines.append)
    end_with(run, how)

    def waited_for() -> None:
        interrupt()
        interrupt()
        pytest.fail("it was not heard")

    monkeypatch.setattr(run.saver, "finish", waited_for)
    with pytest.raises(SystemExit) as stop:
        iterate(run)
    assert stop.value.code == 130
    assert "interrupted twice; the same command starts again: nothing was saved yet" in lines
