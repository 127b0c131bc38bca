"""A policy on many machines: replicas in Ray actors, which share each batch and all have the same weights.

    act, begin_act rows -> shares of them -> replicas, by Ray's object store -> what they decide, in the order of the rows
    load_weights   a channel (`weight_channel`) to all replicas, where there can be one; else once into Ray's object store,
                   where every replica reads them

A replica that dies or stays silent is replaced: the new one takes the newest weights and decides the same rows again, with the
same random numbers, so that nothing changes. Replicas answer in the order in which they were asked, so that calls under way are
decided by the weights that were there when they were begun.
"""

import logging
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from vla_train.distributed.ray import TRAIN_ROLLOUT_RESOURCE, cause_of, connect, placement, ray
from vla_train.distributed.replica import Replica, joined_outputs, shares_of
from vla_train.distributed.weights import pack_weights
from vla_train.envs.restarts import Restarts
from vla_train.envs.worker import START_TIMEOUT_S, WorkerError
from vla_train.policy.base import RolloutPolicy
from vla_train.types import Observation, PolicyOutput

if TYPE_CHECKING:
    import torch

    from vla_train.distributed.weight_channel import WeightSender

_ANSWERS_BETWEEN_RESTARTS = 100
"""Calls that a replica answers before a restart no longer counts."""
_END_TIMEOUT_S = 5.0
"""For replicas to leave a channel that was given up."""

_logger = logging.getLogger(__name__)


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
        options = placement(TRAIN_ROLLOUT_RESOURCE, replicas)
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
            raise cause_of(error) from None
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
        return self.begin_act(observation, uniforms=uniforms, temperature=temperature).result()

    def begin_act(self, observation: Observation, *, uniforms: np.ndarray | None, temperature: float) -> "RayPolicyCall":
        """`act`, without waiting for what it returns; see `Policy`."""
        shares = shares_of(len(self._actors), observation, uniforms)
        return RayPolicyCall(self, [self._call(index, "act", *share, temperature) for index, share in enumerate(shares)])

    def load_weights(self, weights: Mapping[str, "torch.Tensor"], *, version: int) -> None:
        """Push weights to all replicas, straight or through the object store; returns when all have them."""
        if self._channel is None and self._try_channel:
            self._open_channel(weights)
        self.version = version
        if self._channel is None or not self._push(self._channel, weights):
            self._stored_weights = ray.put(pack_weights(weights))
            self._ask_all("load_weights", self._stored_weights, version)

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
        gpus = self._ask_all("gpu_name")
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
                    raise cause_of(error) from None
            except ray.exceptions.GetTimeoutError:
                self._replace(index, f"it did not take weights within {self._timeout_s:g} s")
            except ray.exceptions.RayError as error:
                self._replace(index, f"its actor died: {error}")
        return False

    def _say(self, way: str) -> None:
        """Name the way that weights go, once."""
        if way != self._way:
            _logger.info("weights go to the policy's replicas %s", way)
            self._way = way

    def _call(self, index: int, method: str, *arguments: Any) -> "_Call":
        actor = self._actors[index]
        return _Call(index, actor, method, arguments, reference=getattr(actor, method).remote(*arguments))

    def _ask_all(self, method: str, *arguments: Any) -> list[Any]:
        """Answers of all replicas; errors as of `_answers`."""
        calls = [self._call(index, method, *arguments) for index in range(len(self._actors))]
        return self._answers(calls, until=time.monotonic() + self._timeout_s)

    def _answers(self, calls: Sequence["_Call"], *, until: float) -> list[Any]:
        """Answers to calls, made again where a replica has to be replaced, or was since.

        Raises:
            WorkerError: A replica failed more often than it may.
        """
        answers = []
        for call in calls:
            while True:
                try:
                    answers.append(ray.get(call.reference, timeout=max(0.0, until - time.monotonic())))
                    self._restarts[call.index].worked()
                    break
                except ray.exceptions.RayTaskError as error:  # the policy's own error
                    raise cause_of(error) from None
                except ray.exceptions.GetTimeoutError:
                    cause = f"no answer for {self._timeout_s:g} s"
                except ray.exceptions.RayError as error:
                    cause = f"its actor died: {error}"
                if self._actors[call.index] is call.actor:
                    self._replace(call.index, cause)
                call = self._call(call.index, call.method, *call.arguments)
                until = time.monotonic() + self._timeout_s
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
                raise cause_of(error) from None
            except ray.exceptions.RayError as error:
                cause = f"it did not start: {error}"


@dataclass(frozen=True, slots=True)
class _Call:
    """What a replica was asked."""

    index: int
    actor: Any
    """The replica at that time."""
    method: str
    arguments: tuple[Any, ...]
    reference: Any
    """Of its answer."""


class RayPolicyCall:
    """Rows that replicas decide; the `PolicyCall` of a `RayPolicy`."""

    def __init__(self, policy: RayPolicy, calls: list[_Call]) -> None:
        self._policy = policy
        self._calls = calls
        self._until: float | None = None
        """When replicas that have not answered count as hung: from when this is the oldest call, and they have no other."""

    def ready(self, wait_s: float) -> bool:
        """See `PolicyCall`; replicas that died or hang are found by `result`."""
        references = [call.reference for call in self._calls]
        done, _ = ray.wait(references, num_returns=len(references), timeout=wait_s)
        return len(done) == len(references) or time.monotonic() >= self._deadline()

    def result(self) -> PolicyOutput:
        """What all rows were decided; errors as of `act`."""
        return joined_outputs(self._policy._answers(self._calls, until=self._deadline()))

    def _deadline(self) -> float:
        if self._until is None:
            self._until = time.monotonic() + self._policy._timeout_s
        return self._until


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
