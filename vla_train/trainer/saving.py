"""Saving while training goes on: what stands still is the copying of the state into host memory, and no more.

    begin     each rank copies its part of the state, and of the policy's files              training stands still
    then      each writes its copies, flushes and digests its files                          in another thread
              -> when all have: manifest, the folder gets its name, older ones go (rank 0)
    check     raises what went wrong there; finish waits for its end first

Invariant: one checkpoint is written at a time, and it has its name only if all ranks have written their parts, before the
saver is closed: after that the run's folder may be another process's. It is written in a folder that no other attempt uses.
Where a host's memory has no room for copies, all of it is done while training stands still.
"""

import logging
import secrets
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError

from vla_train.trainer.background import Background
from vla_train.trainer.checkpoint import POLICY, random_state, write_random_states, write_rollout_state
from vla_train.trainer.checkpoint_folder import WRITING, keep_newest_and_best, put_in_place, step_name
from vla_train.trainer.host_memory import HostCopies, free_host_bytes
from vla_train.trainer.manifest import CheckpointError, describe_files, write_manifest
from vla_train.trainer.tensor_files import write_tensors
from vla_train.trainer.trainer import Trainer

_log = logging.getLogger(__name__)

_USABLE = 0.75
"""Share of the free host memory that copies may take: rollouts need some, too."""

_Write = Callable[[Path], list[Path]]
"""Writes something into a folder; returns the files that are this rank's to describe."""


class CheckpointSaver:
    """Saves the checkpoints of a run. All ranks make one, and the same calls.

    Args:
        run: The run's folder, prepared.
        trainer: Its weights, optimizer and counters are saved, and its policy exported.
        keep: How many of the newest are kept, besides the one with the best score; at least 1.
        on_saved: Told of each checkpoint, and of the seconds for which training stood still; on the first rank, in any thread.
    """

    def __init__(
        self, run: Path, *, trainer: Trainer, keep: int, on_saved: Callable[[Path, float], None] = lambda path, still_s: None
    ) -> None:
        self._run = run
        self._trainer = trainer
        self._ranks = trainer.ranks
        self._keep = keep
        self._on_saved = on_saved
        self._copies = HostCopies()
        self._reserved: Background | None = None
        self._under_way: Background | None = None
        self._closed = False
        self._touching = threading.Lock()
        """Held by what names or deletes checkpoints, and by `close`."""
        needed = trainer.optimizer.own_bytes + trainer.policy_bytes // self._ranks.size
        told = self._ranks.gather_objects((socket.gethostname(), needed, free_host_bytes()))
        self.in_background = _fit(told)
        """Whether training goes on while a checkpoint is written."""
        if self.in_background:  # memory is made now, while much else is set up
            pinned = trainer.device.type == "cuda"
            self._reserved = Background(partial(self._copies.reserve, needed, pinned=pinned, wanted=lambda: not self._closed))
        else:
            self._stand_still("the host's memory has no room for copies")

    def begin(
        self,
        *,
        iteration: int,
        rollout_state: Mapping[str, np.ndarray],
        extra: Mapping[str, Any],
        score: float | None = None,
    ) -> Path:
        """Begin a checkpoint of the present state, when the one before is written; returns where it will be.

        Args:
            iteration: Iterations done.
            rollout_state: This rank's `Rollout.state_dict()`.
            extra: JSON data.
            score: Success rate of the evaluation at this iteration.

        Raises:
            CheckpointError: The one before could not be written; or this one, if that was not left to the background.
        """
        began = time.perf_counter()
        self.finish()
        trainer, rank = self._trainer, self._ranks.rank
        target = self._run / "checkpoints" / step_name(iteration)
        failures: list[str] = []
        folder, random_states = self._agree(target, failures)
        writes: list[_Write] = [partial(write_rollout_state, state=dict(rollout_state), rank=rank)]
        if rank == 0:
            writes.append(partial(write_random_states, states=random_states))
        if self.in_background:
            writes += self._copied(folder, failures)
        else:
            writes += [partial(write_tensors, tensors=trainer.state(), rank=rank), self._export]
        still_s = time.perf_counter() - began
        facts = {"iteration": iteration, "score": score, "num_updates": trainer.num_updates, "version": trainer.version}

        def save() -> None:
            self._write(folder, target, writes, failures, facts={**facts, "extra": dict(extra)})
            if rank == 0:
                self._on_saved(target, still_s if self.in_background else time.perf_counter() - began)

        if self.in_background:
            self._under_way = Background(save)
        else:
            save()
        return target

    def check(self) -> None:
        """Raise what went wrong in the background, if that has ended. Ranks may find out at different times.

        Raises:
            CheckpointError: The checkpoint could not be written, for want of room say; older ones are as they were.
        """
        if self._under_way is not None and self._under_way.done():
            self.finish()

    def finish(self) -> None:
        """Wait until the checkpoint under way is written.

        Raises:
            CheckpointError: See `check`.
        """
        under_way, self._under_way = self._under_way, None
        if under_way is not None:
            under_way.result()

    def close(self) -> None:
        """Touch the run's checkpoints no more: one that is still being written, and not waited for, gets no name."""
        with self._touching:
            self._closed = True
        if self._reserved is not None:
            self._reserved.exception()  # it ends soon, and the process not before

    # --- while training stands still

    def _agree(self, target: Path, failures: list[str]) -> tuple[Path, list[Any]]:
        """The folder to write into, which the first rank makes, and the random state of each rank; and whether any of them
        got no memory for copies: then none makes any, from now on."""
        folder = target.with_name(f"{WRITING}{target.name}-{secrets.token_hex(4)}")
        if self._ranks.rank == 0:
            with _noting(failures):
                folder.mkdir(parents=True)
        error = None if self._reserved is None else self._reserved.exception()
        told = self._ranks.gather_objects((folder.name, random_state(), None if error is None else str(error)))
        names, random_states, causes = zip(*told, strict=True)
        if any(cause is not None for cause in causes):
            self._stand_still("; ".join(dict.fromkeys(" ".join(cause.split()) for cause in causes if cause is not None)))
        return target.with_name(names[0]), list(random_states)

    def _stand_still(self, cause: str) -> None:
        """Write while training stands still, from now on."""
        self.in_background = False
        self._copies, self._reserved = HostCopies(), None
        if self._ranks.rank == 0:
            _log.warning("training stands still while a checkpoint is written: %s", cause)

    def _copied(self, folder: Path, failures: list[str]) -> list[_Write]:
        """Copy this rank's part of the state and of the policy; returns what writes them."""
        self._copies.begin()
        tensors = [(name, self._copies.copy(tensor)) for name, tensor in self._trainer.state()]
        writes: list[_Write] = [partial(write_tensors, tensors=tensors, rank=self._ranks.rank)]
        if self._trainer.snapshot is None:
            with _noting(failures):
                self._export(folder)
        else:
            write_policy = self._trainer.snapshot(self._copies.copy)
            writes.append(lambda folder: write_policy(folder / POLICY))
        self._copies.wait()
        return writes

    def _export(self, folder: Path) -> list[Path]:
        """Write the policy as it is now; the first rank describes its files."""
        self._trainer.export(folder / POLICY)
        return []

    # --- in the background

    def _write(
        self, folder: Path, target: Path, writes: Sequence[_Write], failures: list[str], *, facts: Mapping[str, Any]
    ) -> None:
        """Write into `folder`, and rename it to `target` when all ranks have."""
        ranks = self._ranks
        own: list[Path] = []
        described: dict[str, dict[str, Any]] = {}
        for write in writes:
            with _noting(failures):
                self._require_open()
                own += write(folder)
        if not failures:
            with _noting(failures):
                described = describe_files(folder, own)
        told = ranks.gather_objects((failures, described), background=True)
        if ranks.rank == 0 and not any(others for others, _ in told):
            with _noting(failures), self._open():
                write_manifest(folder, facts, described={name: file for _, files in told for name, file in files.items()})
                put_in_place(folder, target)
        causes = [cause for others in ranks.gather_objects(failures, background=True) for cause in others]
        if causes:
            if ranks.rank == 0:
                shutil.rmtree(folder, ignore_errors=True)
            raise CheckpointError(f"checkpoint {target} could not be written: {causes[0]}; older ones are as they were")
        if ranks.rank == 0:
            self._delete_older(target)

    def _delete_older(self, newest: Path) -> None:
        """Where that fails, they are tried again after the next checkpoint."""
        try:
            with self._open():
                keep_newest_and_best(self._run, newest=newest, keep=self._keep)
        except (OSError, ValueError) as error:
            _log.warning("%s is written, but older checkpoints could not be deleted: %s", newest, error)

    @contextmanager
    def _open(self) -> Iterator[None]:
        """The saver is not closed meanwhile; OSError if it is."""
        with self._touching:
            self._require_open()
            yield

    def _require_open(self) -> None:
        if self._closed:
            raise OSError("the run has ended")


@contextmanager
def _noting(failures: list[str]) -> Iterator[None]:
    """Go on after what a disk can do; other ranks wait for this one."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        failures.append(str(error))


def _fit(told: Iterable[tuple[str, int, int]]) -> bool:
    """Whether copies fit: of each rank its host, the bytes that it needs there, and those that are free there."""
    taken: dict[str, int] = {}
    free: dict[str, int] = {}
    for host, needed, left in told:
        taken[host] = taken.get(host, 0) + needed
        free[host] = min(free.get(host, left), left)
    return all(taken[host] <= _USABLE * free[host] for host in taken)
