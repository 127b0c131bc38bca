"""Many machines: env groups and policies as Ray actors. The only module that imports Ray.

Where actors run is said with Ray's custom resources, given when a node joins (`ray start --resources='{"sim": 4}'`):

* `sim`: one unit per env group. Where the cluster has none, env groups are spread over all nodes.
* `train_rollout`: one unit per policy replica. Where the cluster has none, replicas run where their GPUs are.

Simulators and policy share nodes (colocated) if the same nodes offer both resources, and are apart (disaggregated) if not.
Actions and observations travel through Ray's object store: arrays are written once and read without a copy on the same node.
Weights are put there once per push, with their version, and read by every replica.

A process that is not connected to a cluster joins the one named by RAY_ADDRESS, or starts one on this machine (Ray's rules).
"""

import logging
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from vla_train.config import EnvConfig
from vla_train.pipeline.env_group import EnvDescription, EnvGroup, make_env_group
from vla_train.pipeline.workers import Command, EnvWorker, GroupReply, Started, WorkerFault, execute
from vla_train.policy.base import RolloutPolicy
from vla_train.types import Observation, PolicyOutput

try:
    import ray
except ImportError as error:
    raise ImportError("Ray is not installed: pip install 'vla-train[ray]', or use env.worker=thread or process") from error

if TYPE_CHECKING:
    import torch

SIM_RESOURCE = "sim"
TRAIN_ROLLOUT_RESOURCE = "train_rollout"
_CLOSE_TIMEOUT_S = 10.0

_logger = logging.getLogger(__name__)


def connect() -> None:
    """Join a Ray cluster, or start one here; nothing happens where this process has done so already."""
    if not ray.is_initialized():
        ray.init(logging_level=logging.WARNING)


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
        self._group: EnvGroup | None = None

    def start(self, config: EnvConfig, chunk_size: int, seed: int) -> tuple[EnvDescription, str]:
        self._group = make_env_group(config, chunk_size=chunk_size, seed=seed)
        return self._group.description, ray.get_runtime_context().get_node_id()

    def execute(self, command: Command) -> GroupReply:
        assert self._group is not None
        return execute(self._group, command)

    def close(self) -> None:
        if self._group is not None:
            self._group.close()


class RayWorker(EnvWorker):
    """An env group in a Ray actor, on this machine or another."""

    _actor: Any = None
    _same_clock = False

    def start(self) -> None:
        self.incarnation += 1
        connect()
        options = _placement(SIM_RESOURCE, self.config.num_groups)
        self._actor = ray.remote(_EnvActor).options(max_restarts=0, **options).remote(sys.path)
        started = self._actor.start.remote(self.config, self.chunk_size, self.seed)
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
            self._emit(incarnation, WorkerFault(error=error.cause if isinstance(error.cause, BaseException) else error))
        except BaseException as error:
            self._emit(incarnation, WorkerFault(error=RuntimeError(f"the actor of env group {self.index} died: {error}")))
        else:
            if isinstance(answer, GroupReply):
                self._emit(incarnation, answer if self._same_clock else self._on_our_clock(answer))
            else:
                description, node = answer
                self._same_clock = node == ray.get_runtime_context().get_node_id()
                self._emit(incarnation, Started(description=description))

    @staticmethod
    def _on_our_clock(reply: GroupReply) -> GroupReply:
        """Another machine's clock has another origin: place its work just before its answer arrived."""
        now = time.perf_counter()
        return GroupReply(result=reply.result, start=now - (reply.end - reply.start), end=now)

    def kill(self) -> None:
        self.incarnation += 1
        actor, self._actor = self._actor, None
        if actor is not None:
            ray.kill(actor, no_restart=True)

    def close(self) -> None:
        if self._actor is None or not ray.is_initialized():
            return
        closing = self._actor.close.remote()
        done, _ = ray.wait([closing], timeout=_CLOSE_TIMEOUT_S)
        if not done:
            _logger.warning("env group %d did not close within %g s and is killed", self.index, _CLOSE_TIMEOUT_S)
        self.kill()


class _PolicyActor:
    """Runs where the policy's GPU is."""

    def __init__(self, import_path: Sequence[str]) -> None:
        sys.path += [entry for entry in import_path if entry not in sys.path]

    def build(self, factory: Callable[[], RolloutPolicy]) -> tuple[int, int, int]:
        self._policy = factory()
        return self._policy.chunk_size, self._policy.action_dim, self._policy.version

    def act(self, observation: Observation, uniforms: np.ndarray | None, temperature: float) -> PolicyOutput:
        return self._policy.act(observation, uniforms=uniforms, temperature=temperature)

    def load_weights(self, weights: Mapping[str, "torch.Tensor"], version: int) -> None:
        self._policy.load_weights(weights, version=version)


class RayPolicy:
    """A policy on other nodes: replicas that share each batch and all have the same weights.

    Args:
        factory: Builds the policy where it runs; must be picklable.
        replicas: How many; rows of a batch are split evenly.
        gpus_per_replica: GPUs that Ray reserves for each.
    """

    def __init__(self, factory: Callable[[], RolloutPolicy], *, replicas: int = 1, gpus_per_replica: float = 0.0) -> None:
        if replicas < 1:
            raise ValueError(f"a policy needs at least one replica, got {replicas}")
        connect()
        options = _placement(TRAIN_ROLLOUT_RESOURCE, replicas)
        actor: Any = ray.remote(_PolicyActor).options(num_gpus=gpus_per_replica, **options)
        self._actors: list[Any] = [actor.remote(sys.path) for _ in range(replicas)]
        shapes = ray.get([actor.build.remote(factory) for actor in self._actors])
        self.chunk_size, self.action_dim, self.version = shapes[0]

    def act(self, observation: Observation, *, uniforms: np.ndarray | None, temperature: float) -> PolicyOutput:
        """As `Policy.act`; the rows are shared out among the replicas."""
        parts = [part for part in np.array_split(np.arange(len(observation)), len(self._actors)) if len(part)]
        references = []
        for actor, part in zip(self._actors, parts, strict=False):
            rows = slice(int(part[0]), int(part[-1]) + 1)
            share = Observation(images=observation.images[rows], instructions=observation.instructions[rows])
            references.append(actor.act.remote(share, None if uniforms is None else uniforms[rows], temperature))
        outputs: list[PolicyOutput] = ray.get(references)
        return PolicyOutput(
            actions=np.concatenate([output.actions for output in outputs]),
            token_ids=np.concatenate([output.token_ids for output in outputs]),
            logprobs=np.concatenate([output.logprobs for output in outputs]),
            policy_version=min(output.policy_version for output in outputs),
        )

    def load_weights(self, weights: Mapping[str, "torch.Tensor"], *, version: int) -> None:
        """Push weights to all replicas: stored once in the object store, read by each; returns when all have them."""
        stored = ray.put({name: weight.detach().cpu() for name, weight in weights.items()})
        ray.get([actor.load_weights.remote(stored, version) for actor in self._actors])
        self.version = version

    def close(self) -> None:
        """End the replicas."""
        for actor in self._actors:
            ray.kill(actor, no_restart=True)
        self._actors = []


def make_rollout_policy(
    factory: Callable[[], RolloutPolicy], *, replicas: int = 1, gpus_per_replica: float = 0.0
) -> RolloutPolicy:
    """The policy that samples, on nodes that offer `train_rollout`; see `RayPolicy`."""
    return RayPolicy(factory, replicas=replicas, gpus_per_replica=gpus_per_replica)
