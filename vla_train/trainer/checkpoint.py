"""Checkpoints of a run: all that a resumed run needs to give the numbers that an uninterrupted one would have given.

    checkpoints/step_000010/
        manifest.json            iteration, score, counters, `extra`, and size and SHA-256 of every other file
        trainer-0000-0001.safetensors ...   float32 weights and AdamW's moments, each rank's part (see `tensor_files`)
        random.safetensors       states of the random number generators, by rank
        rollout.npz              groups finished or begun, but not trained on; those of rank 1 in rollout-1.npz, and so on
        policy/                  the policy as it saves itself: SimpleVLA-OFT in the published layout, or, where adapters
                                 were trained on a checkpoint, these alone, in peft's layout; they name that checkpoint

Invariant: a folder named `step_*` is complete. It is written under another name, flushed to the disk and renamed (see
`saving`); whatever happens meanwhile, the older ones stay as they are. All ranks write into it and read it: they share that
disk. Any number of ranks can go on from it. Nothing in a checkpoint is a pickle, and nothing in it is run.
"""

import math
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from vla_train.safetensors_file import save_file
from vla_train.trainer.checkpoint_folder import WRITING, latest_checkpoint, list_checkpoints, restore_replaced
from vla_train.trainer.manifest import CheckpointError, read_manifest
from vla_train.trainer.parallel import ONE_RANK, Ranks
from vla_train.trainer.tensor_files import StoredTensors
from vla_train.trainer.trainer import Trainer
from vla_train.units import format_bytes

POLICY = "policy"
_RANDOM = "random.safetensors"
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
        return self.path / POLICY


def prepare_run(run: Path, *, trainer: Trainer | None = None, rollout_bytes: int = 0, count: int = 1) -> None:
    """Make the folder of a run, and make sure before training starts that checkpoints can be written to it.

    Args:
        run: The run's folder.
        trainer: Whose checkpoints there must be room for; None only tests that the folder can be written to.
        rollout_bytes: What a rollout's state may take in each checkpoint.
        count: See `require_room`.

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
    checkpoint_bytes = trainer.optimizer.num_bytes + trainer.policy_bytes + rollout_bytes
    require_room(run, checkpoint_bytes=checkpoint_bytes, count=count)


def require_room(run: Path, *, checkpoint_bytes: int, count: int) -> None:
    """Refuse a disk on which the checkpoints of a run have no room; those that it holds already count as room.

    Args:
        run: The run's folder, prepared.
        checkpoint_bytes: Size of one checkpoint.
        count: The most that it holds at once.

    Raises:
        ValueError: There is too little room.
    """
    folder = run / "checkpoints"
    wanted = count * checkpoint_bytes + _SPARE_BYTES
    held = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    free = shutil.disk_usage(folder).free
    if free + held < wanted:
        raise ValueError(
            f"{folder} has {format_bytes(free)} free, checkpoints of this run take up to {format_bytes(wanted)} "
            f"({count} of {format_bytes(checkpoint_bytes)}): free some, choose another output, or lower keep_checkpoints"
        )


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
        with StoredTensors(path) as stored:
            trainer.load_state(stored, num_updates=manifest["num_updates"], version=manifest["version"])
        _restore_random_state(path, trainer.ranks.rank)
    return Checkpoint(
        path=path,
        iteration=manifest["iteration"],
        score=manifest["score"],
        rollout_states=_rollout_states(path, manifest["files"], trainer.ranks if trainer is not None else ONE_RANK),
        extra=manifest["extra"],
    )


# --- groups


def write_rollout_state(folder: Path, state: Mapping[str, np.ndarray], *, rank: int) -> list[Path]:
    """Write what one rank keeps of its rollout; returns the file, if there is one.

    Raises:
        OSError: It cannot be written.
    """
    if rank and not state:
        return []
    path = folder / _rollout_file(rank)
    np.savez(path, **dict(state))  # type: ignore[arg-type]
    return [path]


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


# --- random states


def random_state() -> dict[str, np.ndarray]:
    """That of this process, by kind of device."""
    states = {"cpu": torch.get_rng_state().numpy()}
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state().numpy()
    return states


def write_random_states(folder: Path, states: Sequence[Mapping[str, np.ndarray]]) -> list[Path]:
    """Write those of all ranks; returns the file.

    Raises:
        OSError, SafetensorError: It cannot be written.
    """
    named = {f"random.{rank}.{kind}": torch.from_numpy(s) for rank, kinds in enumerate(states) for kind, s in kinds.items()}
    save_file(named, folder / _RANDOM)
    return [folder / _RANDOM]


def _restore_random_state(path: Path, rank: int) -> None:
    """Where the run had as many ranks and the same kind of device; otherwise there is nothing to restore."""
    try:
        states = load_file(path / _RANDOM)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"checkpoint {path} is damaged: {_RANDOM} ({error})") from error
    if (state := states.get(f"random.{rank}.cpu")) is not None:
        torch.set_rng_state(state)
    if torch.cuda.is_available() and (state := states.get(f"random.{rank}.cuda")) is not None:
        torch.cuda.set_rng_state(state)
