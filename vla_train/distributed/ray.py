"""Many machines: workers as Ray actors, and where actors run. The only module that imports Ray; others take it from here.

Where actors run is said with Ray's custom resources, given when a node joins (`ray start --resources='{"sim": 4}'`):

* `sim`: one unit per worker. Where the cluster has none, workers are spread over all nodes.
* `train_rollout`: one unit per policy replica. Where the cluster has none, replicas run where their GPUs are.

Simulators and policy share nodes (colocated) if the same nodes offer both resources, and are separate (disaggregated) if not.
Actions and observations travel through Ray's object store: arrays are written once and read without a copy on the same node.
Weights have a way of their own (see `ray_policy`).

A process that is not connected to a cluster joins the one named by RAY_ADDRESS, or starts one on this machine (Ray's rules).

A worker that fails is restarted by the rollout, like any other.
"""

import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from vla_train.config import EnvConfig
from vla_train.envs.factory import make_env_shard
from vla_train.envs.shard import EnvShard, ShardResult
from vla_train.envs.worker import (
    CLOSE_TIMEOUT_S,
    Command,
    EnvWorker,
    Started,
    WorkerError,
    WorkerFault,
    execute,
)
from vla_train.types import EnvDescription

try:
    import ray
except ImportError as error:
    raise ImportError("Ray is not installed: pip install 'vla-train[ray]', or use env.worker=thread or process") from error

SIM_RESOURCE = "sim"
TRAIN_ROLLOUT_RESOURCE = "train_rollout"
_CONNECT_S = 10.0

_logger = logging.getLogger(__name__)


def connect() -> None:
    """Join a Ray cluster, or start one here; nothing happens where this process has done so already.

    Raises:
        WorkerError: There is none at RAY_ADDRESS, or it cannot be started.
    """
    if ray.is_initialized():
        return
    on_sigterm = signal.getsignal(signal.SIGTERM)
    try:
        _require_listener(os.environ.get("RAY_ADDRESS", ""))
        ray.init(logging_level=logging.WARNING)
    except (ConnectionError, OSError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        asked = "; Ray 2.59 and later ask for a token (docs/pipeline.md)" if os.environ.get("RAY_ADDRESS") else ""
        raise WorkerError(f"no Ray cluster can be joined or started (RAY_ADDRESS): {error}{asked}") from None
    if callable(on_sigterm) and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, on_sigterm)  # Ray puts its own, which ends the process, in the place of any other


def _require_listener(address: str) -> None:
    """Ray itself would look for minutes, and hear no signal meanwhile.

    Raises:
        OSError: Nothing answers at HOST:PORT; addresses of other kinds are Ray's to understand.
    """
    host, colon, port = address.rpartition(":")
    if colon and port.isdecimal() and "/" not in address:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_CONNECT_S).close()


def placement(resource: str, count: int) -> dict[str, Any]:
    """Options of `count` actors that want one unit of a custom resource each, if the cluster knows it.

    Raises:
        ValueError: It knows it, and has too little; the actors would wait for ever.
    """
    available = ray.cluster_resources().get(resource)
    if available is None:
        return {"num_cpus": 0, "scheduling_strategy": "SPREAD"}
    if available < count:
        raise ValueError(f"{count} actors need one unit of Ray resource {resource!r} each; the cluster has {available:g}")
    return {"num_cpus": 0, "resources": {resource: 1}}


class _EnvActor:
    """Runs on the simulators' node."""

    def __init__(self, import_path: Sequence[str]) -> None:
        sys.path += [entry for entry in import_path if entry not in sys.path]
        self._group: EnvShard | None = None

    def start(self, config: EnvConfig, chunk_size: int) -> tuple[EnvDescription, str]:
        self._group = make_env_shard(config, chunk_size=chunk_size)
        return self._group.description, ray.get_runtime_context().get_node_id()

    def execute(self, command: Command) -> ShardResult:
        assert self._group is not None
        return execute(self._group, command)

    def close(self) -> None:
        if self._group is not None:
            self._group.close()


class RayWorker(EnvWorker):
    """A worker in a Ray actor, on this machine or another."""

    node_id = ""
    """Ray's id of the node that it runs on; known once it has started."""
    _actor: Any = None
    _placement: dict[str, Any] | None = None
    """Found at the first start. After that it waits for its resource to come back: nodes may be lost, and replaced."""
    _up = False

    def start(self) -> None:
        self.incarnation += 1
        self._up = False
        connect()
        if self._placement is None:
            self._placement = placement(SIM_RESOURCE, self.config.num_workers)
        self._actor = ray.remote(_EnvActor).options(max_restarts=0, **self._placement).remote(sys.path)
        started = self._actor.start.remote(self.config, self.chunk_size)
        self._await(started)

    def send(self, command: Command) -> None:
        self._await(self._actor.execute.remote(command))

    def _await(self, reference: Any) -> None:
        # ray.get blocks in native code without the GIL; one short-lived thread per command is cheaper than polling.
        threading.Thread(
            target=self._receive, args=(self.incarnation, reference), name=f"env {self.index} receiver", daemon=True
        ).start()

    def _receive(self, incarnation: int, reference: Any) -> None:
        try:
            answer = ray.get(reference)
        except ray.exceptions.RayTaskError as error:
            self._emit(incarnation, WorkerFault(error=cause_of(error)))
        except BaseException as error:
            self._emit(incarnation, WorkerFault(error=RuntimeError(f"the actor of worker {self.index} died: {error}")))
        else:
            if isinstance(answer, ShardResult):
                self._emit(incarnation, self._on_our_clock(answer))
            elif incarnation == self.incarnation:
                description, self.node_id = answer
                self._up = True
                self._emit(incarnation, Started(description=description))

    def _on_our_clock(self, result: ShardResult) -> ShardResult:
        """Another machine's clock has another origin: place its work just before its answer arrived."""
        if self.node_id == ray.get_runtime_context().get_node_id():
            return result
        shift = time.perf_counter() - result.ended
        drew = None if result.drew is None else (result.drew[0] + shift, result.drew[1] + shift)
        return replace(result, began=result.began + shift, ended=result.ended + shift, drew=drew)

    def kill(self) -> None:
        self.incarnation += 1
        actor, self._actor = self._actor, None
        if actor is not None:
            ray.kill(actor, no_restart=True)

    def close(self) -> None:
        if self._actor is None or not ray.is_initialized():
            return
        if self._up:  # while it is being made, it does not listen
            done, _ = ray.wait([self._actor.close.remote()], timeout=CLOSE_TIMEOUT_S)
            if not done:
                _logger.warning("worker %d did not close within %g s and is killed", self.index, CLOSE_TIMEOUT_S)
        self.kill()


def cause_of(error: Any) -> BaseException:
    """What went wrong in an actor, as it was raised there, with the traceback from there as a note."""
    if not isinstance(error.cause, BaseException):
        return error
    cause: BaseException = error.cause
    cause.add_note(str(error))
    return cause
