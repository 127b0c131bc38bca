"""A cluster on paper that the real scheduler plays on.

Conductor, scheduler, dynamic sampling, prompts and recorders are those of a run and see no difference; what they drive,
simulator nodes, network and policy replicas, is a `ClusterSpec`'s numbers in virtual time.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks.pipeline.cluster_spec import ClusterSpec
from benchmarks.pipeline.virtual_parts import Node, Site, VirtualReplicas, VirtualWorker
from vla_train.config import EnvConfig
from vla_train.pipeline.conductor import Conductor
from vla_train.pipeline.episodes import PromptStream
from vla_train.pipeline.objectives import CollectGroups
from vla_train.pipeline.prompt_share import PromptShare
from vla_train.pipeline.rollout import make_sampling
from vla_train.pipeline.timeline import Timeline
from vla_train.types import Group

_STARTS = 1 << 16


@dataclass(frozen=True, kw_only=True)
class Played:
    """What iterations came to, of all ranks together; shares are of the time that passed."""

    seconds: float
    decisions: int
    groups: tuple[Group, ...]
    """All that were consumed."""
    policy: float
    """Share in which a replica computes."""
    simulators: float
    """Share in which a node simulates."""
    driver: float
    """Share in which the conductor's process is busy."""
    rows_per_call: float
    staleness: float
    """Updates between a decision and the update that it is trained in, the mean over rows."""

    @property
    def chunks_per_s(self) -> float:
        return self.decisions / self.seconds


class VirtualRank:
    """A conductor and what it drives.

    Args:
        spec: Of this rank alone.
        rank: Which of `size` ranks; it plays every group whose id is `rank` modulo `size`.
    """

    def __init__(self, spec: ClusterSpec, *, rank: int = 0, size: int = 1) -> None:
        self.site = Site(spec)
        self.updates = 0
        """Begun."""
        self._trained_at = 0.0
        """When the update under way ends."""
        random = np.random.default_rng([spec.seed, rank])
        self._nodes = [Node(spec, random) for _ in range(spec.simulators.nodes)]
        config = EnvConfig(
            id="virtual",
            num_workers=spec.simulators.nodes * spec.simulators.workers_per_node,
            envs_per_worker=spec.simulators.envs_per_worker,
            step_timeout_s=1e9,
        )
        nodes = itertools.cycle(self._nodes)
        workers = [
            VirtualWorker(config, index, node, self.site) for index, node in zip(range(config.num_workers), nodes, strict=False)
        ]
        self._replicas = VirtualReplicas(self.site)
        self._conductor = Conductor(
            workers,
            keys=("image",),
            max_batch=spec.replicas.count * spec.replicas.max_rows,
            max_wait_s=spec.rollout.max_wait_s,
            timeline=Timeline(),
            clock=self.site.time.clock,
            inbox=self.site.time,  # type: ignore[arg-type]
        )
        self._sampling = make_sampling(spec.rollout, slots=config.num_workers * config.envs_per_worker)
        stream = PromptStream(
            (0,), {0: _STARTS}, group_size=spec.rollout.group_size, train_fraction=1.0, split_seed=0, seed=spec.seed
        )
        self._prompts = PromptShare(stream, rank=rank, size=size)

    def collect(self) -> tuple[tuple[Group, ...], tuple[Group, ...]]:
        """An iteration's groups, as of `Rollout.collect`, and the resets of the next: (kept ones, all consumed ones)."""
        with self.site.time.conducting():
            objective = CollectGroups(self._sampling, self._prompts, self._has_signal, None, None)
            self._conductor.run(objective, self._replicas)  # type: ignore[arg-type]
            if self._replicas.error is not None:
                raise self._replicas.error
            outcome = self._sampling.outcome
            self._sampling.begin_next()
            self._sampling.release()
            self._conductor.pump(CollectGroups(self._sampling, self._prompts, self._has_signal, None, None))
        return outcome

    def train(self, rows: int, *, met_at: float) -> None:
        """Update and push, when all ranks have met; with `max_staleness` 1 the update overlaps what comes next."""
        site, training = self.site, self.site.spec.training
        if site.spec.rollout.max_staleness == 0:
            site.time.wait_until(met_at + rows * training.row_s + training.push_s)
            site.version = self.updates + 1
        else:
            site.time.wait_until(max(met_at, self._trained_at) + training.push_s)
            site.version = self.updates
            self._trained_at = site.time.now + rows * training.row_s
        self.updates += 1

    def done(self) -> np.ndarray:
        """(5,): decisions, calls of the policy; seconds that replicas, nodes and the conductor's process were busy."""
        counts = self._conductor.counts
        nodes_s = sum(node.cores.busy_s for node in self._nodes)
        return np.array([counts.decisions, counts.batches, self._replicas.busy_s, nodes_s, self.site.time.busy_s])

    def _has_signal(self, group: Group) -> bool:
        return np.random.default_rng([self.site.spec.seed, group.group_id]).random() < self.site.spec.training.signal


def play(ranks: Sequence[VirtualRank], *, decisions: int) -> Played:
    """Whole iterations of ranks that are alike, with at least so many decisions in all; what was begun before goes on."""
    spec, began, before = ranks[0].site.spec, ranks[0].site.time.now, sum(rank.done() for rank in ranks)
    groups: list[Group] = []
    rows, age, played = 0, 0, np.zeros(5)
    while played[0] < decisions:
        outcomes = [rank.collect() for rank in ranks]
        met_at = max(rank.site.time.now for rank in ranks)
        kept = [trajectory for outcome in outcomes for group in outcome[0] for trajectory in group.trajectories]
        rows += (new_rows := sum(map(len, kept)))
        age += sum(int((ranks[0].updates - trajectory.policy_versions).sum()) for trajectory in kept)
        groups += (group for outcome in outcomes for group in outcome[1])
        for rank in ranks:
            rank.train(new_rows, met_at=met_at)
        played = sum(rank.done() for rank in ranks) - before
    seconds = ranks[0].site.time.now - began
    return Played(
        seconds=seconds,
        decisions=int(played[0]),
        groups=tuple(groups),
        policy=played[2] / (len(ranks) * spec.replicas.count * seconds),
        simulators=played[3] / (len(ranks) * spec.simulators.nodes * seconds),
        driver=played[4] / (len(ranks) * seconds),
        rows_per_call=played[0] / played[1],
        staleness=age / max(1, rows),
    )
