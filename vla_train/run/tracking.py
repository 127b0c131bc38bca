"""Where a run's numbers go: `metrics.jsonl` always, and the trackers that were asked for.

A run's folder:

    config.json            the whole config
    metrics.jsonl          one JSON object per record; `kind` is "iteration" or "eval", `iteration` its number
    checkpoints/           see `trainer.checkpoint`
    evaluations/           a folder per evaluation: episodes.jsonl and videos/; see `evaluation`
    timeline/              iteration_000010.png and .json.gz; see `pipeline.timeline`
    tensorboard/           event files
    report.html            see `report`

Invariant: a resumed run's curves are those of an uninterrupted one: records after the checkpoint it resumes from are dropped.
"""

import importlib
import json
import math
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, Protocol

from vla_train.errors import DamagedFileError
from vla_train.files import replace_file

RecordKind = Literal["iteration", "eval"]
METRICS_FILE = "metrics.jsonl"
_PROJECT = "vla-train"


class Tracker(Protocol):
    """A service that draws curves."""

    def log(self, scalars: Mapping[str, float], *, iteration: int) -> None:
        """Take numbers of one iteration; names are paths such as `update/loss`."""
        ...

    def close(self) -> None: ...


class RunLog:
    """Takes the records of one run.

    Args:
        run: The run's folder, which must exist.
        trackers: Names of further trackers: tensorboard, wandb, trackio.
        config: The whole config as JSON data; written to `config.json` and shown by trackers that can.
        resume_iteration: The iteration of the checkpoint that the run goes on from; None starts afresh.
    """

    def __init__(
        self, run: Path, *, trackers: Iterable[str], config: Mapping[str, Any], resume_iteration: int | None = None
    ) -> None:
        self._path = run / METRICS_FILE
        history = [] if resume_iteration is None else read_records(run)
        kept = [record for record in history if record["iteration"] <= (resume_iteration or 0)]
        replace_file(run / "config.json", (json.dumps(config, indent=1) + "\n").encode())
        replace_file(self._path, "".join(json.dumps(record) + "\n" for record in kept).encode())
        self._file = self._path.open("a", encoding="utf-8")
        self._trackers = [make_tracker(name, run, config, resume_iteration) for name in trackers]

    def log(
        self, kind: RecordKind, iteration: int, values: Mapping[str, Any], *, file_only: Mapping[str, Any] | None = None
    ) -> None:
        """Write a record: numbers under names such as `update/loss`, and for `eval` anything JSON (tables per task).

        Trackers get the finite numbers; those of `eval` under `eval/`. A number that is not finite is written as null.
        `file_only` is written to the file beside them, and shown to no tracker.
        """
        told = _finite({**values, **(file_only or {})})
        record = {"kind": kind, "iteration": iteration, "time": round(time.time(), 3), **told}
        self._file.write(json.dumps(record, allow_nan=False) + "\n")
        self._file.flush()
        prefix = "eval/" if kind == "eval" else ""
        scalars = {
            prefix + name: float(value) for name, value in record.items() if name in values and isinstance(value, int | float)
        }
        for tracker in self._trackers:
            tracker.log(scalars, iteration=iteration)

    def close(self) -> None:
        self._file.close()
        for tracker in self._trackers:
            tracker.close()


def read_records(run: Path, kind: RecordKind | None = None) -> list[dict[str, Any]]:
    """Records of a run, oldest first; a last line that a crash cut short is left out.

    Raises:
        DamagedFileError: A line other than the last is not a record.
    """
    path = run / METRICS_FILE
    if not path.exists():
        return []
    *lines, _ = path.read_bytes().split(b"\n")
    records = []
    for number, line in enumerate(lines, start=1):
        try:
            record = json.loads(line)
            if "kind" not in record or not isinstance(record.get("iteration"), int):
                raise ValueError("it has no kind or no iteration")
            if kind is None or record["kind"] == kind:
                records.append(record)
        except (ValueError, AttributeError, TypeError) as error:
            raise DamagedFileError(f"{path}, line {number}: not a record of a run ({error}): delete this line") from None
    return records


class TensorBoardTracker:
    """Event files in `tensorboard/`; what was written past the iteration that the run goes on from is hidden."""

    def __init__(self, run: Path, resume_iteration: int | None) -> None:
        from torch.utils.tensorboard import SummaryWriter  # slow to import

        folder = run / "tensorboard"
        _let_the_second_pass(folder)
        self._writer = SummaryWriter(str(folder), purge_step=0 if resume_iteration is None else resume_iteration + 1)

    def log(self, scalars: Mapping[str, float], *, iteration: int) -> None:
        for name, value in scalars.items():
            self._writer.add_scalar(name, value, iteration)
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


class WandbTracker:
    """Weights & Biases; a resumed run goes on where it was."""

    def __init__(self, run: Path, config: Mapping[str, Any], resume_iteration: int | None) -> None:
        wandb = _installed("wandb")
        id_file = run / "wandb_run_id"
        known = id_file.read_text() if resume_iteration is not None and id_file.exists() else None
        self._run = wandb.init(
            project=_PROJECT,
            name=run.resolve().name,
            config=dict(config),
            dir=str(run),
            id=known,
            resume=None if known is None else "allow",
        )
        id_file.write_text(self._run.id)

    def log(self, scalars: Mapping[str, float], *, iteration: int) -> None:
        self._run.log(dict(scalars), step=iteration)

    def close(self) -> None:
        self._run.finish()


class TrackioTracker:
    """trackio; a resumed run goes on in the newest of its name."""

    def __init__(self, run: Path, config: Mapping[str, Any], resume_iteration: int | None) -> None:
        trackio = _installed("trackio")
        resume = "never" if resume_iteration is None else "allow"
        self._run = trackio.init(project=_PROJECT, name=run.resolve().name, config=dict(config), resume=resume, embed=False)

    def log(self, scalars: Mapping[str, float], *, iteration: int) -> None:
        self._run.log(dict(scalars), step=iteration)

    def close(self) -> None:
        self._run.finish()


def make_tracker(name: str, run: Path, config: Mapping[str, Any], resume_iteration: int | None) -> Tracker:
    """A tracker by name.

    Raises:
        ValueError: There is no such tracker.
        ImportError: Its package is missing; the message says how to install it.
    """
    match name:
        case "tensorboard":
            return TensorBoardTracker(run, resume_iteration)
        case "wandb":
            return WandbTracker(run, config, resume_iteration)
        case "trackio":
            return TrackioTracker(run, config, resume_iteration)
    raise ValueError(f"unknown tracker {name!r}: choose among tensorboard, wandb, trackio")


def _let_the_second_pass(folder: Path) -> None:
    """Wait until a new event file sorts behind the others: TensorBoard reads them by name, and a name tells only the second.

    A file that is read before those it hides would lose to them.
    """
    seconds = (path.name.split(".")[3] for path in folder.glob("events.out.tfevents.*"))
    newest = max((int(second) for second in seconds if second.isdecimal()), default=None)
    while int(time.time()) == newest:
        time.sleep(0.05)


def _installed(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ImportError(f"{name} cannot be imported ({error}): pip install {name}, or leave it out of trackers") from error


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
