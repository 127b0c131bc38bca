"""Many machines: workers and policies as Ray actors. The only module that imports Ray.

Where actors run is said with Ray's custom resources, given when a node joins (`ray start --resources='{"sim": 4}'`):

* `sim`: one unit per worker. Where the cluster has none, workers are spread over all nodes.
* `train_rollout`: one unit per policy replica. Where the cluster has none, replicas run where their GPUs are.

Simulators and policy share nodes (colocated) if the same nodes offer both resources, and are separate (disaggregated) if not.
Actions and observations travel through Ray's object store: arrays are written once and read without a copy on the same node.
Weights go to the replicas of a policy straight, from GPU to GPU (see `weight_channel`); where there is no such way, they are
put into the object store once per push, and read by every replica.

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
from vla_train.distributed.replica import Replica, joined_outputs, shares_of
from vla_train.distributed.weights import pack_weights
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

    from vla_train.distributed.weight_channel import WeightSender

SIM_RESOURCE = "sim"
TRAIN_ROLLOUT_RESOURCE = "train_rollout"
_ANSWERS_BETWEEN_RESTARTS = 100
"""Calls that a replica answers before a restart no longer counts."""
_END_TIMEOUT_S = 5.0
"""For replicas to leave a channel that was given up."""

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


class _PolicyActor(Replica):
    """Runs where the policy's GPU is."""

    def build_there(self, factory: Callable[[], RolloutPolicy]) -> tuple[dict[str, Any], str]:
        """What the policy says of itself, and the node it is on."""
        return self.build(factory), ray.get_runtime_context().get_node_id()


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
        """Reference of the newest weights in the object store; None where only the channel has them."""
        self._channel: WeightSender | None = None
        """To all replicas, as they are now."""
        self._try_channel = True
        """Whether one is to be made: not again before a replica has been replaced."""
        self._way = ""
        """How weights go, as it was said last."""
        self._actor_class: Any = ray.remote(_PolicyActor).options(num_gpus=int(use_gpu), max_restarts=0, **options)
        self._actors: list[Any] = [self._actor_class.remote(sys.path) for _ in range(replicas)]
        try:
            built = ray.get([actor.build_there.remote(factory) for actor in self._actors], timeout=START_TIMEOUT_S)
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
        shares = shares_of(len(self._actors), observation, uniforms)
        calls = [(index, "act", (*share, temperature)) for index, share in enumerate(shares)]
        return joined_outputs(self._ask(calls, timeout_s=self._timeout_s))

    def load_weights(self, weights: Mapping[str, "torch.Tensor"], *, version: int) -> None:
        """Push weights to all replicas, straight or through the object store; returns when all have them."""
        if self._channel is None and self._try_channel:
            self._open_channel(weights)
        self.version = version
        if self._channel is None or not self._push(self._channel, weights):
            self._stored_weights = ray.put(pack_weights(weights))
            arguments = (self._stored_weights, version)
            self._ask([(index, "load_weights", arguments) for index in range(len(self._actors))], timeout_s=self._timeout_s)

    def close(self) -> None:
        """End the replicas."""
        if self._channel is not None:
            self._channel.close()
            self._channel = None
        for actor in self._actors:
            ray.kill(actor, no_restart=True)
        self._actors = []

    def _open_channel(self, weights: Mapping[str, "torch.Tensor"]) -> None:
        """Make a channel to all replicas, where there can be one, and say which way weights go."""
        import torch

        from vla_train.distributed.weight_channel import ChannelError, WeightSender, gpu_name, obstacle

        device = next((weight.device for weight in weights.values()), torch.device("cpu"))
        gpus = self._ask([(index, "gpu_name", ()) for index in range(len(self._actors))], timeout_s=self._timeout_s)
        self._try_channel = False
        reason = obstacle(device, [gpu_name(device), *gpus])
        if reason is None:
            host, receivers = ray.util.get_node_ip_address(), len(self._actors)
            try:
                sender = WeightSender(host=host, receivers=receivers, device=device, timeout_s=self._timeout_s)
                joining = [
                    actor.join_channel.remote(sender.address, rank, 1 + receivers, device.type, self._timeout_s)
                    for rank, actor in enumerate(self._actors, start=1)
                ]
                sender.connect(lambda: _require_unfailed(joining))
                self._channel = sender
            except ChannelError as error:
                reason = str(error)
        way = "from GPU to GPU (NCCL)" if device.type == "cuda" else "straight, among CPUs (gloo)"
        self._say(way if reason is None else f"through Ray's object store: {reason}")

    def _push(self, channel: "WeightSender", weights: Mapping[str, "torch.Tensor"]) -> bool:
        """Whether all replicas have the weights; if not, the channel is gone, and who died or hangs is replaced."""
        from vla_train.distributed.broadcast_group import ChannelError

        until = time.monotonic() + self._timeout_s
        loading = [actor.receive_weights.remote(self.version) for actor in self._actors]
        try:
            channel.send(weights, lambda: _require_unfailed(loading))
            ray.get(loading, timeout=self._timeout_s)
            self._stored_weights = None
            return True
        except (ChannelError, ray.exceptions.RayError) as error:
            _logger.warning("weights did not reach all replicas (%s) and go through Ray's object store", _first_line(error))
        channel.close()
        self._channel = None
        self._stored_weights = ray.put(pack_weights(weights))
        until = max(until, time.monotonic() + _END_TIMEOUT_S)
        for index, reference in enumerate(loading):
            try:
                ray.get(reference, timeout=max(0.0, until - time.monotonic()))
            except ray.exceptions.RayTaskError as error:
                if not isinstance(error.cause, ChannelError):  # the policy's own error
                    raise _cause(error) from None
            except ray.exceptions.GetTimeoutError:
                self._replace(index, f"it did not take weights within {self._timeout_s:g} s")
            except ray.exceptions.RayError as error:
                self._replace(index, f"its actor died: {error}")
        return False

    def _say(self, way: str) -> None:
        """Name the way that weights go, once."""
        if way != self._way:
            _logger.info("weights go to the policy's %d replicas %s", len(self._actors), way)
            self._way = way

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
        """A new replica with the newest weights, and a channel that has it in at the next push."""
        if self._channel is not None:
            if self._stored_weights is None:
                self._stored_weights = ray.put(pack_weights(self._channel.sent()))
            self._channel.close()
            self._channel = None
        self._try_channel = True
        while True:
            ray.kill(self._actors[index], no_restart=True)
            restarts = self._restarts[index]
            if restarts.exhausted:
                raise WorkerError(f"policy replica {index} failed after {len(restarts)} restarts: {cause}")
            restarts.restarted()
            restart = f"restart {len(restarts)} of {self._max_restarts}"
            _logger.warning("policy replica %d failed (%s): %s", index, cause, restart)
            actor = self._actors[index] = self._actor_class.remote(sys.path)
            starting = [actor.build_there.remote(self._factory)]
            if self._stored_weights is not None:
                starting.append(actor.load_weights.remote(self._stored_weights, self.version))
            try:
                ray.get(starting, timeout=START_TIMEOUT_S)
                return
            except ray.exceptions.RayTaskError as error:
                raise _cause(error) from None
            except ray.exceptions.RayError as error:
                cause = f"it did not start: {error}"


def _require_unfailed(calls: list[Any]) -> None:
    """Refuse to wait for answers that will not come.

    Raises:
        ChannelError: One of these calls has failed.
    """
    from vla_train.distributed.broadcast_group import ChannelError

    done, _ = ray.wait(calls, num_returns=len(calls), timeout=0)
    try:
        ray.get(done)
    except ray.exceptions.RayError as error:
        raise ChannelError(_first_line(error)) from None


def _first_line(error: Any) -> str:
    """What went wrong, in this process or in an actor."""
    cause = error.cause if isinstance(error, ray.exceptions.RayTaskError) else error
    return f"{type(cause).__name__}: {cause}".splitlines()[0]


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
