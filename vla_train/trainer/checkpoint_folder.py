"""The checkpoints of a run, by name: which there are, which is the newest, which are kept.

    RUN/checkpoints/step_000010/                     complete
                    .writing-step_000020-1f0c9a2b/   being written, or left by a process that was killed
                    .replaced-step_000010/           complete, while another takes its name

Knows nothing of what a checkpoint holds but its manifest.
"""

import logging
import re
import shutil
from contextlib import suppress
from pathlib import Path

from vla_train.trainer.manifest import CheckpointError, flush, read_manifest, verify_checkpoint

WRITING = ".writing-"
_REPLACED = ".replaced-"
_STEP = re.compile(r"step_(\d{6,})")

_log = logging.getLogger(__name__)


def step_name(iteration: int) -> str:
    """Name of the checkpoint after so many iterations."""
    return f"step_{iteration:06d}"


def list_checkpoints(run: Path) -> list[Path]:
    """Complete checkpoints of a run, oldest first."""
    folders = [(int(match[1]), path) for path in (run / "checkpoints").glob("step_*") if (match := _STEP.fullmatch(path.name))]
    return [path for _, path in sorted(folders)]


def latest_checkpoint(run: Path) -> Path | None:
    """The newest checkpoint of a run whose files are all as they were written; a damaged one is passed over with a warning."""
    for path in reversed(list_checkpoints(run)):
        try:
            verify_checkpoint(path)
        except CheckpointError as error:
            _log.warning("%s; going back to the one before", error)
        else:
            return path
    return None


def best_checkpoint(run: Path) -> Path | None:
    """The checkpoint with the best score, the newest of equals; None where none was evaluated."""
    return _best(list_checkpoints(run))


def put_in_place(writing: Path, target: Path) -> None:
    """Give a complete folder its name. What has that name is the same iteration before its evaluation, or a damaged checkpoint
    that the run went back behind; it is kept beside it until the new one is there."""
    folder = target.parent
    if target.exists():
        target.rename(folder / f"{_REPLACED}{target.name}")
    try:
        writing.rename(target)
        flush(folder)
    finally:
        restore_replaced(folder)


def restore_replaced(folder: Path) -> None:
    """Delete what was replaced, or give it its name back where nothing has taken it: the process ended in between."""
    for replaced in folder.glob(f"{_REPLACED}*"):
        target = folder / replaced.name.removeprefix(_REPLACED)
        if target.exists():
            shutil.rmtree(replaced, ignore_errors=True)
        else:
            with suppress(FileNotFoundError):  # another rank was faster
                replaced.rename(target)


def keep_newest_and_best(run: Path, *, newest: Path, keep: int) -> None:
    """Delete what is not to be kept, and what the run went back behind: it is damaged, or it would not have gone back."""
    complete = list_checkpoints(run)
    own = complete[: complete.index(newest) + 1]
    kept = {*own[-keep:], _best(own)}
    for path in complete:
        if path not in kept:
            _delete(path)


def _delete(path: Path) -> None:
    """At no time is there an incomplete folder of that name."""
    shutil.rmtree(path.rename(path.with_name(f"{WRITING}doomed-{path.name}")), ignore_errors=True)


def _best(paths: list[Path]) -> Path | None:
    """The one with the best score, the last of equals; `paths` are oldest first."""
    scored = [(score, number) for number, path in enumerate(paths) if (score := _score(path)) is not None]
    return paths[max(scored)[1]] if scored else None


def _score(path: Path) -> float | None:
    try:
        return read_manifest(path)["score"]
    except (CheckpointError, ValueError):
        return None
