"""What stands in for the machines of a cluster, in virtual time: nodes that simulate, and replicas of the policy.

They answer the conductor as workers and the caller's thread do, after as long as a `ClusterSpec` says. Nothing is simulated:
observations are a byte, decisions zeros.
"""

import numpy as np

from benchmarks.pipeline.cluster_spec import ClusterSpec
from benchmarks.pipeline.virtual_time import Line, VirtualTime
from vla_train.config import EnvConfig
from vla_train.envs.shard import ShardResult
from vla_train.envs.worker import Command, EnvWorker, Event, Reset
from vla_train.pipeline.messages import Decided, Failed, FromConductor, PolicyBatch
from vla_train.types import ArraySpec, EnvDescription, EpisodeSpec, PolicyOutput

CHUNK_SIZE, ACTION_DIM = 8, 7


class Site:
    """What the parts of one rank share."""

    def __init__(self, spec: ClusterSpec) -> None:
        self.spec = spec
        self.time = VirtualTime(python=spec.driver.python)
        self.inbound, self.outbound = Line(), Line()
        """The network of the conductor's machine."""
        self.version = 0
        """Updates in the weights that decide."""
        self.episodes: list[EpisodeSpec] = []
        """Every one that a node played to its end."""


class Node:
    """A machine that simulates."""

    def __init__(self, spec: ClusterSpec, random: np.random.Generator) -> None:
        self.cores = Line()
        self._spec = spec.simulators
        self._slowness = _spread(random, self._spec.node_sigma)
        self._random = np.random.default_rng(random.integers(1 << 30))

    def seconds(self, command: Command) -> float:
        """How long a command takes on all of its cores."""
        if isinstance(command, Reset):
            return self._slowness * self._spec.slot_reset_s * len(command.slots)
        mean = self._spec.worker_chunk_s + self._spec.slot_chunk_s * int(command.active.sum())
        return self._slowness * mean * _spread(self._random, self._spec.sigma)


def _spread(random: np.random.Generator, sigma: float) -> float:
    """A factor of mean 1."""
    return float(random.lognormal(-0.5 * sigma**2, sigma)) if sigma else 1.0


class VirtualWorker(EnvWorker):
    """Some slots of a node, up from the start; they do not fail."""

    def __init__(self, config: EnvConfig, index: int, node: Node, site: Site) -> None:
        super().__init__(config, index=index, chunk_size=CHUNK_SIZE)
        count = config.envs_per_worker
        bound = np.ones(ACTION_DIM, np.float32)
        self.description = EnvDescription(
            observations={"image": ArraySpec((1,), "uint8")}, action_low=-bound, action_high=bound, num_slots=count
        )
        self._node = node
        self._site = site
        self._specs: list[EpisodeSpec | None] = [None] * count
        self._length, self._left = np.zeros(count, np.int64), np.zeros(count, np.int64)
        self._observations = {"image": np.zeros((count, 1), np.uint8)}

    def send(self, command: Command) -> None:
        time, network, driver = self._site.time, self._site.spec.network, self._site.spec.driver
        with time.apart():
            arrived = time.work(driver.send_s) + network.latency_s
            seconds = self._node.seconds(command)
            ended = self._node.cores.serve(arrived, seconds)
            over = self._begin(command) if isinstance(command, Reset) else self._play(command.active)
            result = ShardResult(
                observations=self._observations,
                instructions=("",) * len(over),
                rewards=np.zeros(len(over), np.float32),
                num_steps=np.full(len(over), 0 if isinstance(command, Reset) else CHUNK_SIZE, np.int32),
                terminated=over,
                truncated=np.zeros(len(over), bool),
                succeeded=over,
                began=ended - seconds,
                ended=ended,
            )
            event = Event(worker=self.index, incarnation=self.incarnation, content=result)
            work_s = driver.receive_s + driver.record_s * int(self._length[over].sum())
            transfer_s = len(over) * network.observation_bytes / network.bytes_per_s

            def leave(when: float) -> None:
                arrives = self._site.inbound.serve(when + network.latency_s, transfer_s)
                time.at(arrives, lambda when: time.deliver(event, work_s=work_s))

            time.at(ended, leave)

    def _begin(self, command: Reset) -> np.ndarray:
        for slot, spec in zip(command.slots, command.specs, strict=True):
            self._specs[slot] = spec
            self._length[slot] = self._left[slot] = self._site.spec.simulators.length(spec)
        return np.zeros(len(self._specs), bool)

    def _play(self, active: np.ndarray) -> np.ndarray:
        """Which episodes are over."""
        assert (self._left[active] > 0).all(), "an episode went on after its end"
        self._left[active] -= 1
        over = active & (self._left == 0)
        self._site.episodes += [spec for slot, spec in enumerate(self._specs) if over[slot] and spec is not None]
        return over

    def start(self) -> None:
        raise AssertionError("virtual workers do not fail")

    kill = close = start


class VirtualReplicas:
    """The policy, and the caller's thread that asks it: the conductor's outbox."""

    def __init__(self, site: Site) -> None:
        self.busy_s = 0.0
        """Seconds of all replicas together."""
        self.error: BaseException | None = None
        self._site = site
        most = site.spec.replicas.count * site.spec.replicas.max_rows
        rows = max(most, site.spec.simulators.envs_per_worker)
        self._actions = np.zeros((rows, CHUNK_SIZE, ACTION_DIM), np.float32)
        self._seen = {"image": np.zeros((rows, 1), np.uint8)}
        self._decision = {
            "token_ids": np.zeros((rows, CHUNK_SIZE * ACTION_DIM), np.int32),
            "logprobs": np.zeros((rows, CHUNK_SIZE * ACTION_DIM), np.float32),
        }

    def put(self, message: FromConductor) -> None:
        time, spec = self._site.time, self._site.spec
        if isinstance(message, Failed):
            self.error = message.error
        if not isinstance(message, PolicyBatch):
            return
        with time.apart():
            rows, most = len(message.rows), spec.replicas.count * spec.replicas.max_rows
            now = time.work(spec.driver.number_s * rows) + spec.driver.gather_s * rows
            for first in range(0, rows, most):
                now = self._act(now, min(most, rows - first))
            output = PolicyOutput(
                actions=self._actions[:rows],
                decision={name: array[:rows] for name, array in self._decision.items()},
                policy_version=self._site.version,
            )
            seen = {name: array[:rows] for name, array in self._seen.items()}
            decided = Decided(batch=message, observations=seen, outputs=(output,))
            time.at(now, lambda when: time.deliver(decided, work_s=spec.driver.call_s * spec.replicas.count))

    def _act(self, now: float, rows: int) -> float:
        """When the last replica has answered."""
        replicas, network = self._site.spec.replicas, self._site.spec.network
        answered = now
        for part in np.array_split(np.arange(rows), replicas.count):
            if len(part):
                transfer_s = len(part) * network.observation_bytes / network.bytes_per_s
                seconds = replicas.call_s + replicas.row_s * len(part)
                self.busy_s += seconds
                began = self._site.outbound.serve(now, transfer_s) + network.latency_s
                answered = max(answered, began + seconds + network.latency_s)
        return answered
