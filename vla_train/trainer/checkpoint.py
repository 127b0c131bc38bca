"""Checkpoints of a run: all that a resumed run needs to give the numbers that an uninterrupted one would have given.

    checkpoints/step_000010/
        manifest.json            iteration, score, counters, `extra`, and size and SHA-256 of every other file
        trainer-00001.safetensors ...   float32 weights, AdamW's moments, random states; whole tensors, for any number of ranks
        rollout.npz              groups finished or begun, but not trained on
        policy/                  the policy in the published layout, adapters merged

Invariant: a folder named `step_*` is complete. It is written under another name, flushed to the disk and renamed; whatever
happens meanwhile, the older ones stay as they are. Nothing in a checkpoint is a pickle, and nothing in it is run.
"""

import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from vla_train.trainer.trainer import Trainer

_FORMAT = 1
_MANIFEST = "manifest.json"
_ROLLOUT = "rollout.npz"
_POLICY = "policy"
_STEP = re.compile(r"step_(\d{6,})")
_SHARD_BYTES = 2_000_000_000
_SPARE_BYTES = 100_000_000

_log = logging.getLogger(__name__)


class CheckpointError(RuntimeError):
    """A checkpoint is damaged, or could not be written."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Checkpoint:
    """What a checkpoint holds besides the trainer's state."""

    path: Path
    iteration: int
    """Iterations done."""
    score: float | None
    """Success rate of the evaluation at this iteration; None where there was none."""
    rollout_state: dict[str, np.ndarray]
    extra: dict[str, Any]
    """Whatever JSON data the loop keeps (the prompt counter, say)."""

    @property
    def policy(self) -> Path:
        """Folder of the policy in the published layout."""
        return self.path / _POLICY


def prepare_run(run: Path, *, trainer: Trainer | None = None, keep: int = 1) -> None:
    """Make the folder of a run, and make sure before training starts that checkpoints can be written to it.

    Args:
        run: The run's folder.
        trainer: Whose checkpoints there must be room for; None only tests that the folder can be written to.
        keep: Newest checkpoints kept; one more is held while a new one is written, and one as the best.

    Raises:
        ValueError: The folder cannot be made or written to, or its disk has too little room.
    """
    folder = run / "checkpoints"
    probe = folder / f".probe-{os.getpid()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with probe.open("wb") as file:
            file.write(b"probe")
            file.flush()
            os.fsync(file.fileno())
        probe.unlink()
    except OSError as error:
        raise ValueError(f"the run cannot be saved in {run}: {error.strerror or error}; choose another output") from error
    for abandoned in folder.glob(".writing-*"):
        shutil.rmtree(abandoned, ignore_errors=True)
    if trainer is None:
        return
    wanted = (keep + 2) * (trainer.optimizer.num_bytes + trainer.policy_bytes) + _SPARE_BYTES
    held = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    free = shutil.disk_usage(folder).free
    if free + held < wanted:
        raise ValueError(
            f"{folder} has {free / 1e9:.1f} GB free, checkpoints of this run take up to {wanted / 1e9:.1f} GB: "
            "free some, choose another output, or lower keep_checkpoints"
        )


def save_checkpoint(
    run: Path,
    *,
    iteration: int,
    trainer: Trainer,
    rollout_state: Mapping[str, np.ndarray],
    extra: Mapping[str, Any],
    score: float | None = None,
    keep: int = 2,
) -> Path:
    """Write a checkpoint, then delete all but the newest `keep` and the one with the best score. All ranks must call this.

    Args:
        run: The run's folder.
        iteration: Iterations done.
        trainer: Its weights, optimizer and counters are saved, and its policy exported.
        rollout_state: `Rollout.state_dict()`.
        extra: JSON data.
        score: Success rate of the evaluation at this iteration.
        keep: At least 1.

    Raises:
        CheckpointError: It could not be written, for want of room say; older checkpoints are as they were.
    """
    folder = run / "checkpoints"
    target = folder / f"step_{iteration:06d}"
    writing = folder / f".writing-{target.name}"
    ranks = trainer.ranks
    failure: OSError | None = None
    try:
        if ranks.rank == 0:
            shutil.rmtree(writing, ignore_errors=True)
            writing.mkdir(parents=True)
            np.savez(writing / _ROLLOUT, **dict(rollout_state))  # type: ignore[arg-type]
    except OSError as error:
        failure = error
    random_states = ranks.gather_objects(_random_state())
    failure = _write_tensors(writing, trainer.state(), write=ranks.rank == 0 and failure is None) or failure
    try:
        trainer.export(writing / _POLICY)
    except (OSError, SafetensorError) as error:
        failure = failure or OSError(str(error))
    if ranks.rank == 0 and failure is None:
        try:
            save_file(_named_random_states(random_states), writing / "random.safetensors")
            _write_manifest(writing, iteration=iteration, score=score, trainer=trainer, extra=extra)
            if target.exists():  # a damaged one, that the run went back behind
                _delete(target)
            writing.rename(target)
            _flush(folder)
        except (OSError, SafetensorError) as error:
            failure = OSError(str(error))
    causes = [cause for cause in ranks.gather_objects(None if failure is None else str(failure)) if cause is not None]
    if causes:
        if ranks.rank == 0:
            shutil.rmtree(writing, ignore_errors=True)
        raise CheckpointError(f"checkpoint {target} could not be written: {causes[0]}; older ones are as they were")
    if ranks.rank == 0:
        _prune(folder, keep=keep)
    return target


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
    scored = [(score, path) for path in list_checkpoints(run) if (score := _score(path)) is not None]
    return max(scored, key=lambda pair: (pair[0], pair[1].name))[1] if scored else None


def verify_checkpoint(path: Path) -> dict[str, Any]:
    """Check size and SHA-256 of every file; returns the manifest.

    Raises:
        CheckpointError: A file is missing or damaged; the message names it.
    """
    manifest = _read_manifest(path)
    for name, expected in manifest["files"].items():
        file = path / name
        if not file.is_file():
            raise CheckpointError(f"checkpoint {path} is damaged: {name} is missing")
        if file.stat().st_size != expected["bytes"] or _digest(file) != expected["sha256"]:
            raise CheckpointError(f"checkpoint {path} is damaged: {name} is not what was written")
    return manifest


def load_checkpoint(path: Path, *, trainer: Trainer | None = None) -> Checkpoint:
    """Read a checkpoint, and put its state into `trainer` where one is given (the weights of its policy included).

    Raises:
        CheckpointError: It is damaged.
        ValueError: It belongs to a policy of another shape, or was written by another version.
    """
    manifest = _read_manifest(path)
    if trainer is not None:
        with ExitStack() as stack:
            trainer.load_state(_reader(path, stack), num_updates=manifest["num_updates"], version=manifest["version"])
            _restore_random_state(path, trainer.ranks.rank, _reader(path, stack))
    try:
        with np.load(path / _ROLLOUT, allow_pickle=False) as arrays:
            rollout_state = {name: arrays[name] for name in arrays.files}
    except (OSError, ValueError, KeyError) as error:
        raise CheckpointError(f"checkpoint {path} is damaged: {_ROLLOUT} ({error})") from error
    return Checkpoint(
        path=path,
        iteration=manifest["iteration"],
        score=manifest["score"],
        rollout_state=rollout_state,
        extra=manifest["extra"],
    )


# --- tensors


def _write_tensors(folder: Path, tensors: Iterator[tuple[str, Tensor]], *, write: bool) -> OSError | None:
    """Write tensors into files of bounded size. The iterator is exhausted whatever happens, since other ranks follow it."""
    pending: dict[str, Tensor] = {}
    failure: OSError | None = None
    number = 0

    def flush() -> None:
        nonlocal number, failure
        number += 1
        try:
            save_file(pending, folder / f"trainer-{number:05d}.safetensors")
        except (OSError, SafetensorError) as error:
            failure = OSError(str(error))
        pending.clear()

    for name, tensor in tensors:
        if not write or failure is not None:
            continue
        pending[name] = tensor.detach().to("cpu", copy=True).contiguous()
        if sum(value.nbytes for value in pending.values()) >= _SHARD_BYTES:
            flush()
    if pending:
        flush()
    return failure


def _reader(path: Path, stack: ExitStack) -> Callable[[str], Tensor]:
    """A function that reads one tensor of the checkpoint by name."""
    place: dict[str, Any] = {}
    for file in [*sorted(path.glob("trainer-*.safetensors")), path / "random.safetensors"]:
        try:
            opened = stack.enter_context(safe_open(file, framework="pt", device="cpu"))
            place.update(dict.fromkeys(opened.keys(), opened))
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"checkpoint {path} is damaged: {file.name} ({error})") from error

    def read(name: str) -> Tensor:
        if name not in place:
            raise ValueError(f"checkpoint {path} holds no {name}: it belongs to another policy or another way of training it")
        return place[name].get_tensor(name)

    return read


# --- random states


def _random_state() -> dict[str, np.ndarray]:
    states = {"cpu": torch.get_rng_state().numpy()}
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state().numpy()
    return states


def _named_random_states(states: list[dict[str, np.ndarray]]) -> dict[str, Tensor]:
    return {f"random.{rank}.{kind}": torch.from_numpy(s) for rank, named in enumerate(states) for kind, s in named.items()}


def _restore_random_state(path: Path, rank: int, read: Callable[[str], Tensor]) -> None:
    """Where the run had as many ranks and the same kind of device; otherwise there is nothing to restore."""
    with safe_open(path / "random.safetensors", framework="pt", device="cpu") as file:
        names = set(file.keys())
    if f"random.{rank}.cpu" in names:
        torch.set_rng_state(read(f"random.{rank}.cpu"))
    if torch.cuda.is_available() and f"random.{rank}.cuda" in names:
        torch.cuda.set_rng_state(read(f"random.{rank}.cuda"))


# --- manifest


def _write_manifest(folder: Path, *, iteration: int, score: float | None, trainer: Trainer, extra: Mapping[str, Any]) -> None:
    """Describe and flush all files, the manifest last."""
    files = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        _flush(path)
        files[path.relative_to(folder).as_posix()] = {"bytes": path.stat().st_size, "sha256": _digest(path)}
    manifest = {
        "format": _FORMAT,
        "iteration": iteration,
        "score": score,
        "num_updates": trainer.num_updates,
        "version": trainer.version,
        "extra": dict(extra),
        "files": files,
    }
    (folder / _MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
    for path in (folder / _MANIFEST, *[path for path in folder.rglob("*") if path.is_dir()], folder):
        _flush(path)


def _read_manifest(path: Path) -> dict[str, Any]:
    try:
        manifest = json.loads((path / _MANIFEST).read_text(encoding="utf-8"))
        version = manifest["format"]
    except FileNotFoundError:
        raise CheckpointError(f"{path} is not a checkpoint of a run: it has no {_MANIFEST}") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"checkpoint {path} is damaged: {_MANIFEST} ({error})") from error
    if version != _FORMAT:
        raise ValueError(f"checkpoint {path} has format {version}, this version reads {_FORMAT}")
    return manifest


def _score(path: Path) -> float | None:
    try:
        return _read_manifest(path)["score"]
    except (CheckpointError, ValueError):
        return None


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _flush(path: Path) -> None:
    """Make sure that a file or folder is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _prune(folder: Path, *, keep: int) -> None:
    run = folder.parent
    kept = {*list_checkpoints(run)[-keep:], best_checkpoint(run)}
    for path in list_checkpoints(run):
        if path not in kept:
            _delete(path)


def _delete(path: Path) -> None:
    """At no time is there an incomplete folder of that name."""
    shutil.rmtree(path.rename(path.with_name(f".writing-doomed-{path.name}")), ignore_errors=True)
