"""How runs end before they are done: what is saved, and what the last line says."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Protocol

import torch

from vla_train.display import Display
from vla_train.envs.worker import WorkerError
from vla_train.errors import DataError, DivergedError, RunError, gpu_too_small
from vla_train.interruption import Interruption
from vla_train.trainer.checkpoint_folder import list_checkpoints
from vla_train.trainer.manifest import CheckpointError
from vla_train.trainer.parallel import Ranks
from vla_train.trainer.rank_lines import RankLostError
from vla_train.trainer.saving import CheckpointSaver


class SavedRun(Protocol):
    """What a run must be able to do."""

    config: Any
    """Names its folder, `output`."""
    ranks: Ranks
    display: Display
    done: int
    unit: str
    """What `done` counts, such as "iterations"."""

    saver: CheckpointSaver

    @property
    def has_begun(self) -> bool:
        """Whether there is anything to save."""
        ...

    def save(self) -> None:
        """Begin a checkpoint of the present state."""
        ...


@contextmanager
def saved_when_it_ends(run: SavedRun, interruption: Interruption) -> Iterator[None]:
    """Do the work of a run in this block: whatever ends it, what can be saved is, and the error says how to go on.

    Raises:
        WorkerError, DataError: A worker failed more often than it may, or data cannot be read; a checkpoint was saved.
        DivergedError: Loss or log-probs are not finite; older checkpoints are as they were.
        CheckpointError: A checkpoint could not be written; older ones are as they were.
        RunError: Something else could not be written, or a GPU's memory is too small; the same.
        SystemExit: It was interrupted.

    A checkpoint that is being written is finished first, unless a rank is lost or the user will not wait. On several ranks,
    `apart` blocks see to it that what is saved ends all of them at the same point: they save together.
    """
    try:
        with _saved(run, interruption):
            yield
            _finish(run)
    except KeyboardInterrupt:
        run.display.line(f"interrupted twice; {newest_text(run.config.output)}")
        run.ranks.leave("it was interrupted twice")
        raise SystemExit(130) from None


@contextmanager
def _saved(run: SavedRun, interruption: Interruption) -> Iterator[None]:
    """See `saved_when_it_ends`; KeyboardInterrupt where the user will not wait."""
    try:
        yield
    except KeyboardInterrupt:
        if interruption.broke_off:
            raise
        _save_now(run)
        run.display.line("interrupted; the same command goes on from the newest checkpoint")
        raise SystemExit(130) from None
    except (WorkerError, DataError) as error:
        raise type(error)(f"{error}; {_save(run)}") from error.__cause__
    except DivergedError as error:
        raise DivergedError(f"{error}; {_kept(run)}; lower optim.learning_rate first") from error
    except torch.OutOfMemoryError as error:
        raise RunError(f"{gpu_too_small(error)}; {_kept(run)}") from error
    except OSError as error:
        raise RunError(f"{run.config.output} cannot be written to ({error}); {_kept(run)}") from error
    except RankLostError:
        raise
    except Exception:
        _kept(run)
        raise


def _finish(run: SavedRun) -> None:
    with run.display.waiting("writing the checkpoint"):
        run.saver.finish()


def _save_now(run: SavedRun) -> None:
    """Save the present state, whatever became of the checkpoint before."""
    with suppress(CheckpointError):
        _finish(run)
    run.save()
    _finish(run)


def _save(run: SavedRun) -> str:
    """Save what was done, and say so; or why not."""
    if not run.has_begun:
        return newest_text(run.config.output)
    try:
        _save_now(run)
    except CheckpointError as error:
        return str(error)
    return f"{run.done} {run.unit} are saved, and the same command goes on from there"


def _kept(run: SavedRun) -> str:
    """What the run goes on from, when the checkpoint that is being written is."""
    with suppress(Exception):  # what ended the run is what its user must hear of
        _finish(run)
    return newest_text(run.config.output)


def newest_text(output: Path) -> str:
    """What the run goes on from without another checkpoint."""
    checkpoints = list_checkpoints(output)
    where = f"goes on from {checkpoints[-1].name}" if checkpoints else "starts again: nothing was saved yet"
    return f"the same command {where}"
