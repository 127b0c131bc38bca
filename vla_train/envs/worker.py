"""Shards at work: one interface for threads, processes and Ray actors.

    rollout                     worker
    send(Reset | Step) -------> plays it, on its own thread / process / node
    sink(Event) <-------------- Started | ShardResult | WorkerFault, from any thread

Each worker has at most one command under way. A worker that fails says so once, with a `WorkerFault`, and is then dead until
`start` is called again; `incarnation` counts the starts, so that what a dead one still sends is recognised and ignored.
Nothing here decides what to do about a fault: the rollout does.
"""

import logging
import queue
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from vla_train.config import EnvConfig
from vla_train.envs.factory import make_env_shard
from vla_train.envs.shard import EnvShard, ShardResult
from vla_train.errors import RunError
from vla_train.types import EnvDescription, EpisodeSpec

START_TIMEOUT_S = 600.0
"""Making an env may compile scenes; nothing takes longer than this without being stuck."""
CLOSE_TIMEOUT_S = 10.0
"""A worker that is asked to end may finish its command, if that takes no longer than this."""

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class Reset:
    """Start episodes in some slots."""

    slots: tuple[int, ...]
    specs: tuple[EpisodeSpec, ...]
    keys: tuple[str, ...]
    """Of the observation: what the result must hold."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """Play one chunk."""

    actions: np.ndarray
    """(N, K, A) float32."""
    active: np.ndarray
    """(N,) bool."""
    keys: tuple[str, ...]
    """As in `Reset`."""
    film: Mapping[int, bool] = field(default_factory=dict)
    """As for `EnvShard.step`."""


Command = Reset | Step


@dataclass(frozen=True, kw_only=True, slots=True)
class Started:
    """The worker is there."""

    description: EnvDescription


@dataclass(frozen=True, kw_only=True, slots=True)
class WorkerFault:
    """The worker can do no more."""

    error: BaseException


@dataclass(frozen=True, kw_only=True, slots=True)
class Event:
    """What a worker has to say."""

    worker: int
    incarnation: int
    content: Started | ShardResult | WorkerFault


Sink = Callable[[Event], None]


class WorkerError(RunError):
    """A worker failed more often than it may be restarted, or could not be started; the message holds the cause."""


class EnvWorker(ABC):
    """A shard at work somewhere.

    Args:
        config: The env.
        index: Number of this worker among its siblings.
        chunk_size: K.
    """

    description: EnvDescription
    """Known once the worker has started."""

    def __init__(self, config: EnvConfig, *, index: int, chunk_size: int) -> None:
        self.config = config
        self.index = index
        self.chunk_size = chunk_size
        self.incarnation = 0
        self._sink: Sink = lambda event: None

    def connect(self, sink: Sink) -> None:
        """From now on, events go to `sink`; it is called from other threads and must not block."""
        self._sink = sink

    @abstractmethod
    def start(self) -> None:
        """Begin a new incarnation, without waiting; `Started` or `WorkerFault` follows."""

    @abstractmethod
    def send(self, command: Command) -> None:
        """Begin a command, without waiting; `ShardResult` or `WorkerFault` follows."""

    @abstractmethod
    def kill(self) -> None:
        """Stop at once, whatever it is doing; says nothing more under this incarnation."""

    @abstractmethod
    def close(self) -> None:
        """Free everything, in an orderly way where the worker still answers."""

    def _emit(self, incarnation: int, content: Started | ShardResult | WorkerFault) -> None:
        if incarnation == self.incarnation:
            if isinstance(content, Started):
                self.description = content.description
            self._sink(Event(worker=self.index, incarnation=incarnation, content=content))


def execute(shard: EnvShard, command: Command) -> ShardResult:
    """Carry out a command, and time it."""
    began = time.perf_counter()
    if isinstance(command, Reset):
        result = shard.reset(command.slots, command.specs, command.keys)
    else:
        result = shard.step(command.actions, command.active, command.keys, command.film)
    drew = shard.render_span
    return replace(result, began=began, ended=time.perf_counter(), drew=drew if drew and drew[0] >= began else None)


class ThreadWorker(EnvWorker):
    """A shard in a thread of this process: for envs whose work releases the GIL. Nothing is copied: pictures that an env makes
    on the GPU stay there.

    Python cannot kill a thread. A hung one is abandoned: it is told to end, its answers are ignored, and its memory is freed
    if it ever comes back. Use processes for envs that hang.
    """

    _inbox: "queue.SimpleQueue[Command | None]"
    _thread: threading.Thread | None = None

    def start(self) -> None:
        self.incarnation += 1
        self._inbox = queue.SimpleQueue()
        self._thread = threading.Thread(
            target=self._run, args=(self.incarnation, self._inbox), name=f"env {self.index}", daemon=True
        )
        self._thread.start()

    def _run(self, incarnation: int, inbox: "queue.SimpleQueue[Command | None]") -> None:
        shard = None
        try:
            shard = make_env_shard(self.config, chunk_size=self.chunk_size, tensors=True)
            self._emit(incarnation, Started(description=shard.description))
            while (command := inbox.get()) is not None:
                self._emit(incarnation, execute(shard, command))
        except BaseException as error:  # the fault boundary of this thread
            self._emit(incarnation, WorkerFault(error=error))
        finally:
            if shard is not None:
                try:
                    shard.close()
                except Exception:
                    _logger.warning("closing worker %d failed", self.index, exc_info=True)

    def send(self, command: Command) -> None:
        self._inbox.put(command)

    def kill(self) -> None:
        self.incarnation += 1
        self._inbox.put(None)
        self._thread = None

    def close(self) -> None:
        thread = self._thread
        if thread is None:
            return
        self.kill()
        thread.join(timeout=CLOSE_TIMEOUT_S)
        if thread.is_alive():
            _logger.warning("worker %d did not end within %g s and is left behind", self.index, CLOSE_TIMEOUT_S)
