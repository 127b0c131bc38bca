"""Checkpoints of a run: all that a resumed run needs to give the numbers that an uninterrupted one would have given.

    checkpoints/step_000010/
        manifest.json            iteration, score, counters, `extra`, and size and SHA-256 of every other file
        trainer-00001.safetensors ...   float32 weights and AdamW's moments: whole tensors, for any number of ranks
        random.safetensors       states of the random number generators, by rank
        rollout.npz              groups finished or begun, but not trained on; those of rank 1 in rollout-1.npz, and so on
        policy/                  the policy as it saves itself: SimpleVLA-OFT in the published layout, or, where adapters
                                 were trained on a checkpoint, these alone, in peft's layout; they name that checkpoint

Invariant: a folder named `step_*` is complete. It is written under another name, flushed to the disk and renamed; whatever
happens meanwhile, the older ones stay as they are. All ranks write into it and read it: they share that disk. Nothing in a
checkpoint is a pickle, and nothing in it is run.
"""

import math
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from vla_train.safetensors_file import save_file
from vla_train.trainer.checkpoint_folder import (
    WRITING,
    keep_newest_and_best,
    latest_checkpoint,
    list_checkpoints,
    put_in_place,
    restore_replaced,
    step_name,
)
from vla_train.trainer.manifest import CheckpointError, read_manifest, write_manifest
from vla_train.trainer.parallel import ONE_RANK, Ranks
from vla_train.trainer.trainer import Trainer
from vla_train.units import format_bytes

_POLICY = "policy"
_SHARD_BYTES = 2_000_000_000
_SPARE_BYTES = 100_000_000


@dataclass(frozen=True, kw_only=True, slots=True)
class Checkpoint:
    """What a checkpoint holds besides the trainer's state."""

    path: Path
    iteration: int
    """Iterations done."""
    score: float | None
    """Success rate of the evaluation at this iteration; None where there was none."""
    rollout_states: tuple[dict[str, np.ndarray], ...]
    """What each rank gave, of those whose groups the reading rank may have to go on with."""
    extra: dict[str, Any]
    """Whatever JSON data the loop keeps (the prompt counter, say)."""

    @property
    def policy(self) -> Path:
        """Folder of the policy, as it saves itself."""
        return self.path / _POLICY


def prepare_run(run: Path, *, trainer: Trainer | None = None, rollout_bytes: int = 0, keep: int = 1) -> None:
    """Make the folder of a run, and make sure before training starts that checkpoints can be written to it.

    Args:
        run: The run's folder.
        trainer: Whose checkpoints there must be room for; None only tests that the folder can be written to.
        rollout_bytes: What a rollout's state may take in each checkpoint.
        keep: See `require_room`.

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
    restore_replaced(folder)
    for abandoned in folder.glob(f"{WRITING}*"):
        shutil.rmtree(abandoned, ignore_errors=True)
    if trainer is None:
        return
    require_room(run, checkpoint_bytes=trainer.optimizer.num_bytes + trainer.policy_bytes + rollout_bytes, keep=keep)


def require_room(run: Path, *, checkpoint_bytes: int, keep: int) -> None:
    """Refuse a disk on which the checkpoints of a run have no room; those that it holds already count as room.

    Args:
        run: The run's folder, prepared.
        checkpoint_bytes: Size of one checkpoint.
        keep: Newest checkpoints kept; one more is held while a new one is written, and one as the best.

    Raises:
        ValueError: There is too little room.
    """
    folder = run / "checkpoints"
    wanted = (keep + 2) * checkpoint_bytes + _SPARE_BYTES
    held = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    free = shutil.disk_usage(folder).free
    if free + held < wanted:
        raise ValueError(
            f"{folder} has {format_bytes(free)} free, checkpoints of this run take up to {format_bytes(wanted)} "
            f"({keep + 2} of {format_bytes(checkpoint_bytes)}): free some, choose another output, or lower keep_checkpoints"
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
        rollout_state: This rank's `Rollout.state_dict()`.
        extra: JSON data.
        score: Success rate of the evaluation at this iteration.
        keep: At least 1.

    Raises:
        CheckpointError: It could not be written, for want of room say; older checkpoints are as they were.
    """
    folder = run / "checkpoints"
    target = folder / step_name(iteration)
    writing = folder / f"{WRITING}{target.name}"
    ranks = trainer.ranks
    failure: OSError | None = None
    try:
        if ranks.rank == 0:
            shutil.rmtree(writing, ignore_errors=True)
            writing.mkdir(parents=True)
    except OSError as error:
        failure = error
    random_states = ranks.gather_objects(_random_state())
    try:
        if failure is None and (ranks.rank == 0 or rollout_state):
            np.savez(writing / _rollout_file(ranks.rank), **dict(rollout_state))  # type: ignore[arg-type]
    except OSError as error:
        failure = error
    failure = _write_tensors(writing, trainer.state(), write=ranks.rank == 0 and failure is None) or failure
    try:
        trainer.export(writing / _POLICY)
    except (OSError, SafetensorError) as error:
        failure = failure or OSError(str(error))
    failures = ranks.gather_objects(None if failure is None else str(failure))  # all files of others are written
    if ranks.rank == 0 and not any(failures):
        counters = {"num_updates": trainer.num_updates, "version": trainer.version}
        facts = {"iteration": iteration, "score": score, **counters, "extra": dict(extra)}
        try:
            save_file(_named_random_states(random_states), writing / "random.safetensors")
            write_manifest(writing, facts)
            put_in_place(writing, target)
        except (OSError, SafetensorError) as error:
            failure = OSError(str(error))
    failures += ranks.gather_objects(None if failure is None else str(failure))
    causes = [cause for cause in failures if cause is not None]
    if causes:
        if ranks.rank == 0:
            shutil.rmtree(writing, ignore_errors=True)
        raise CheckpointError(f"checkpoint {target} could not be written: {causes[0]}; older ones are as they were")
    if ranks.rank == 0:
        keep_newest_and_best(run, newest=target, keep=keep)
    return target


def newest_checkpoint(run: Path, ranks: Ranks) -> Path | None:
    """The checkpoint that a run goes on from, the same on all ranks; None where it has none yet.

    Raises:
        ValueError: There are some, and all are damaged.
    """
    newest = latest_checkpoint(run) if ranks.rank == 0 else None
    path = ranks.gather_objects(newest)[0]  # one reads it all to see whether it is whole, and all go on from the same
    if path is None and (damaged := list_checkpoints(run)):
        raise ValueError(
            f"all checkpoints in {damaged[0].parent} are damaged: restore one, or delete them all to start again, "
            "which deletes the run's records too"
        )
    return path


def load_checkpoint(path: Path, *, trainer: Trainer | None = None) -> Checkpoint:
    """Read a checkpoint, and put its state into `trainer` where one is given (the weights of its policy included).

    Raises:
        CheckpointError: It is damaged.
        ValueError: It belongs to a policy of another shape, or was written by another version.
    """
    manifest = read_manifest(path)
    if trainer is not None:
        with ExitStack() as stack:
            trainer.load_state(_reader(path, stack), num_updates=manifest["num_updates"], version=manifest["version"])
            _restore_random_state(path, trainer.ranks.rank, _reader(path, stack))
    return Checkpoint(
        path=path,
        iteration=manifest["iteration"],
        score=manifest["score"],
        rollout_states=_rollout_states(path, manifest["files"], trainer.ranks if trainer is not None else ONE_RANK),
        extra=manifest["extra"],
    )


# --- groups


def _rollout_file(rank: int) -> str:
    return f"rollout-{rank}.npz" if rank else "rollout.npz"


def _rollout_states(path: Path, files: Mapping[str, Any], ranks: Ranks) -> tuple[dict[str, np.ndarray], ...]:
    """What each of the ranks that wrote the checkpoint held, where it can concern this one; group g is that of rank g % W."""
    writers = 1 + sum(name.startswith("rollout-") for name in files)
    common = math.gcd(writers, ranks.size)
    states = []
    for rank in range(ranks.rank % common, writers, common):
        name = _rollout_file(rank)
        try:
            with np.load(path / name, allow_pickle=False) as arrays:
                states.append({key: arrays[key] for key in arrays.files})
        except (OSError, ValueError, KeyError) as error:
            raise CheckpointError(f"checkpoint {path} is damaged: {name} ({error})") from error
    return tuple(states)


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
