"""Many machines: workers and policies as Ray actors. The only module that imports Ray.

Where actors run is said with Ray's custom resources, given when a node joins (`ray start --resources='{"sim": 4}'`):

* `sim`: one unit per worker. Where the cluster has none, workers are spread over all nodes.
* `train_rollout`: one unit per policy replica. Where the cluster has none, replicas run where their GPUs are.

Simulators and policy share nodes (colocated) if the same nodes offer both resources, and are separate (disaggregated) if not.
Actions and observations travel through Ray's object store: arrays are written once and read without a copy on the same node.
Weights are put there once per push, with their version, and read by every replica.

A process that is not connected to a cluster joins the one named by RAY_ADDRESS, or starts one on this machine (Ray's rules).

A worker that fails is restarted by the rollout, like any other. A policy replica that dies or stays silent is replaced here:
the new one takes the newest weights and decides the same rows again, with the same random numbers, so that nothing changes.
"""

import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from vla_train.config import EnvConfig
from vla_train.distributed.weights import PackedWeight, pack_weights, unpack_weights
from vla_train.envs.factory import make_env_shard
from vla_train.envs.restarts import Restarts
from vla_train.envs.shard import EnvShard, ShardResult
from vla_train.envs.worker import (
    CLOSE_TIMEOUT_S,
    START_TIMEOUT_S,
    Command,
    EnvWorker,
    Started,
    WorkerError,
    WorkerFault,
    execute,
)
from vla_train.policy.base import RolloutPolicy
from vla_train.types import EnvDescription, Observation, PolicyOutput

try:
    import ray
except ImportError as error:
    raise ImportError("Ray is not installed: pip install 'vla-train[ray]', or use env.worker=thread or process") from error

if TYPE_CHECKING:
    import torch

SIM_RESOURCE = "sim"
TRAIN_ROLLOUT_RESOURCE = "train_rollout"
_ANSWERS_BETWEEN_RESTARTS = 100
"""Calls that a replica answers before a restart no longer counts."""

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
        ray.init(logging_level=logging.WARNING)
    except (ConnectionError, OSError, RuntimeError, ray.exceptions.RayError) as error:
        asked = "; Ray 2.59 and later ask for a token (docs/pipeline.md)" if os.environ.get("RAY_ADDRESS") else ""
        raise WorkerError(f"no Ray cluster can be joined or started (RAY_ADDRESS): {error}{asked}") from None
    if callable(on_sigterm) and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, on_sigterm)  # Ray puts its own, which ends the process, in the place of any other


def _placement(resource: str, count: int) -> dict[str, Any]:
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
            self._placement = _placement(SIM_RESOURCE, self.config.num_workers)
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
            self._emit(incarnation, WorkerFault(error=_cause(error)))
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


_SAID = ("chunk_size", "action_dim", "observation_keys", "num_uniforms", "version")
"""What a replica says of its policy."""


class _PolicyActor:
    """Runs where the policy's GPU is."""

    def __init__(self, import_path: Sequence[str]) -> None:
        sys.path += [entry for entry in import_path if entry not in sys.path]

    def build(self, factory: Callable[[], RolloutPolicy]) -> tuple[dict[str, Any], str]:
        """What the policy says of itself, and the node it is on."""
        self._policy = factory()
        said = {name: getattr(self._policy, name) for name in _SAID}
        said["played_with"] = dict(getattr(self._policy, "played_with", {}))
        return said, ray.get_runtime_context().get_node_id()

    def act(self, observation: Observation, uniforms: np.ndarray | None, temperature: float) -> PolicyOutput:
        return self._policy.act(observation, uniforms=uniforms, temperature=temperature)

    def load_weights(self, weights: Mapping[str, PackedWeight], version: int) -> None:
        self._policy.load_weights(unpack_weights(weights), version=version)


class RayPolicy:
    """A policy on other nodes: replicas that share each batch and all have the same weights.

    Args:
        factory: Builds the policy where it runs; must be picklable.
        replicas: How many; rows of a batch are split evenly.
        use_gpu: Whether each replica has a GPU of its own.
        timeout_s: A replica that does not answer for this long counts as hung.
        max_restarts: How often each replica may be replaced while it answers 100 calls; one more stops the run with the cause.

    Raises:
        ValueError: The cluster has no room for the replicas, or the policy cannot be built (its own error is passed on).
        WorkerError: The replicas died, or did not start in time.
    """

    def __init__(
        self,
        factory: Callable[[], RolloutPolicy],
        *,
        replicas: int = 1,
        use_gpu: bool = False,
        timeout_s: float = 300.0,
        max_restarts: int = 3,
    ) -> None:
        connect()
        options = _placement(TRAIN_ROLLOUT_RESOURCE, replicas)
        gpus = ray.cluster_resources().get("GPU", 0)
        if use_gpu and gpus < replicas:
            raise ValueError(f"{replicas} policy replicas need a GPU each; the Ray cluster has {gpus:g}")
        self._factory = factory
        self._timeout_s = timeout_s
        self._max_restarts = max_restarts
        self._restarts = [Restarts(most=max_restarts, window=_ANSWERS_BETWEEN_RESTARTS) for _ in range(replicas)]
        self._stored_weights: Any = None
        """Reference of the newest weights in the object store."""
        self._actor_class: Any = ray.remote(_PolicyActor).options(num_gpus=int(use_gpu), max_restarts=0, **options)
        self._actors: list[Any] = [self._actor_class.remote(sys.path) for _ in range(replicas)]
        try:
            built = ray.get([actor.build.remote(factory) for actor in self._actors], timeout=START_TIMEOUT_S)
        except ray.exceptions.RayTaskError as error:
            self.close()
            raise _cause(error) from None
        except ray.exceptions.RayError as error:
            self.close()
            raise WorkerError(f"the policy's replicas did not start within {START_TIMEOUT_S:g} s, or died: {error}") from None
        said = built[0][0]
        self.chunk_size: int = said["chunk_size"]
        self.action_dim: int = said["action_dim"]
        self.observation_keys: tuple[str, ...] = said["observation_keys"]
        self.num_uniforms: int = said["num_uniforms"]
        self.version: int = said["version"]
        self.played_with: dict[str, Any] = said["played_with"]
        self.node_ids = [node_id for _, node_id in built]
        """Ray's id of the node that each replica was started on."""

    def act(self, observation: Observation, *, uniforms: np.ndarray | None, temperature: float) -> PolicyOutput:
        """As `Policy.act`; the rows are shared out among the replicas."""
        calls = []
        parts = [part for part in np.array_split(np.arange(len(observation)), len(self._actors)) if len(part)]
        for index, part in enumerate(parts):
            rows = slice(int(part[0]), int(part[-1]) + 1)
            calls.append((index, "act", (observation.select(rows), None if uniforms is None else uniforms[rows], temperature)))
        outputs: list[PolicyOutput] = self._ask(calls, timeout_s=self._timeout_s)
        return PolicyOutput(
            actions=np.concatenate([output.actions for output in outputs]),
            decision={name: np.concatenate([output.decision[name] for output in outputs]) for name in outputs[0].decision},
            policy_version=min(output.policy_version for output in outputs),
        )

    def load_weights(self, weights: Mapping[str, "torch.Tensor"], *, version: int) -> None:
        """Push weights to all replicas: stored once in the object store, read by each; returns when all have them."""
        self._stored_weights = ray.put(pack_weights(weights))
        self.version = version
        arguments = (self._stored_weights, version)
        self._ask([(index, "load_weights", arguments) for index in range(len(self._actors))], timeout_s=self._timeout_s)

    def close(self) -> None:
        """End the replicas."""
        for actor in self._actors:
            ray.kill(actor, no_restart=True)
        self._actors = []

    def _ask(self, calls: Sequence[tuple[int, str, tuple[Any, ...]]], *, timeout_s: float) -> list[Any]:
        """Answers to calls (replica, method, arguments), made all at once; made again where a replica has to be replaced.

        Raises:
            WorkerError: A replica failed more often than it may.
        """
        references = [getattr(self._actors[index], method).remote(*arguments) for index, method, arguments in calls]
        deadline = time.monotonic() + timeout_s
        answers = []
        for reference, (index, method, arguments) in zip(references, calls, strict=True):
            while True:
                try:
                    answers.append(ray.get(reference, timeout=max(0.0, deadline - time.monotonic())))
                    self._restarts[index].worked()
                    break
                except ray.exceptions.RayTaskError as error:  # the policy's own error
                    raise _cause(error) from None
                except ray.exceptions.GetTimeoutError:
                    self._replace(index, f"no answer for {timeout_s:g} s")
                except ray.exceptions.RayError as error:
                    self._replace(index, f"its actor died: {error}")
                reference = getattr(self._actors[index], method).remote(*arguments)
                deadline = time.monotonic() + timeout_s
        return answers

    def _replace(self, index: int, cause: str) -> None:
        """A new replica with the newest weights."""
        while True:
            ray.kill(self._actors[index], no_restart=True)
            restarts = self._restarts[index]
            if restarts.exhausted:
                raise WorkerError(f"policy replica {index} failed after {len(restarts)} restarts: {cause}")
            restarts.restarted()
            restart = f"restart {len(restarts)} of {self._max_restarts}"
            _logger.warning("policy replica %d failed (%s): %s", index, cause, restart)
            actor = self._actors[index] = self._actor_class.remote(sys.path)
            starting = [actor.build.remote(self._factory)]
            if self._stored_weights is not None:
                starting.append(actor.load_weights.remote(self._stored_weights, self.version))
            try:
                ray.get(starting, timeout=START_TIMEOUT_S)
                return
            except ray.exceptions.RayTaskError as error:
                raise _cause(error) from None
            except ray.exceptions.RayError as error:
                cause = f"it did not start: {error}"


def _cause(error: Any) -> BaseException:
    """What went wrong in an actor, as it was raised there, with the traceback from there as a note."""
    if not isinstance(error.cause, BaseException):
        return error
    cause: BaseException = error.cause
    cause.add_note(str(error))
    return cause


def make_rollout_policy(factory: Callable[[], RolloutPolicy], *, replicas: int = 1, use_gpu: bool | None = False) -> RayPolicy:
    """The policy that samples, on nodes that offer `train_rollout`; see `RayPolicy`. The caller closes it.

    Args:
        factory: Builds the policy where it runs; must be picklable.
        replicas: How many.
        use_gpu: Whether each replica has a GPU of its own; None: where the cluster has as many.
    """
    if use_gpu is None:
        connect()
        use_gpu = ray.cluster_resources().get("GPU", 0) >= replicas
    return RayPolicy(factory, replicas=replicas, use_gpu=use_gpu)
