"""The cluster on paper beside real runs of the same size: threads that sleep and a policy that sleeps, on this machine.

Episodes and their lengths are the same ones, chunk times are drawn from the same distribution.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from benchmarks.pipeline.cluster_spec import ClusterSpec, Driver, Replicas, Simulators
from benchmarks.pipeline.loops import GROUP_SIZE, PipelinedLoop, started_workers
from benchmarks.pipeline.synthetic import SleepingPolicy, make_spec, sleeping_config
from benchmarks.pipeline.virtual_cluster import VirtualRank, play
from vla_train.config import RolloutConfig
from vla_train.types import EpisodeSpec

THREADS = Driver(python=1.0, number_s=12e-6, gather_s=2e-6)
"""Workers that are threads, with pictures of 16 x 16 pixels: nothing is sent."""
_BATCH = 64


@dataclass(frozen=True, kw_only=True)
class Case:
    """One real run, and how it is described on paper."""

    name: str
    workers: int
    sigma: float
    shortest: int
    longest: int
    step_s: float
    row_s: float
    envs: int = 8

    def play(self, seconds: float) -> float:
        """Chunks per second of the real run."""
        config = sleeping_config(
            num_workers=self.workers,
            envs_per_worker=self.envs,
            step_s=self.step_s,
            sigma=self.sigma,
            shortest=self.shortest,
            longest=self.longest,
        )
        config = replace(config, id="benchmarks.pipeline.synthetic:Sleeping-v0")
        policy = SleepingPolicy(row_s=self.row_s)
        with started_workers(config, chunk_size=policy.chunk_size) as workers:
            return PipelinedLoop(workers, policy, make_spec, max_policy_batch=_BATCH).play(seconds=seconds).decisions_per_s

    def simulate(self, decisions: int) -> float:
        """Chunks per second on paper, over about so many."""

        def length(spec: EpisodeSpec) -> int:
            number = spec.group_id * GROUP_SIZE + spec.sample_id
            return int(np.random.default_rng(number).integers(self.shortest, self.longest + 1))

        groups = self.workers * self.envs // GROUP_SIZE
        spec = ClusterSpec(
            rollout=RolloutConfig(groups_per_iteration=groups, group_size=GROUP_SIZE),
            simulators=Simulators(
                nodes=self.workers,
                workers_per_node=1,
                envs_per_worker=self.envs,
                worker_chunk_s=self.step_s,
                sigma=self.sigma,
                length=length,
            ),
            replicas=Replicas(row_s=self.row_s, max_rows=_BATCH),
            driver=THREADS,
        )
        ranks = [VirtualRank(spec)]
        play(ranks, decisions=1)
        return play(ranks, decisions=decisions).chunks_per_s


CASES = (
    Case(name="policy and envs of equal cost", workers=2, sigma=0.0, shortest=20, longest=20, step_s=0.05, row_s=0.05 / 8),
    Case(name="the policy is the limit", workers=4, sigma=0.5, shortest=8, longest=32, step_s=0.05, row_s=0.025 / 8),
    Case(name="both exactly balanced, random", workers=4, sigma=0.5, shortest=8, longest=32, step_s=0.05, row_s=0.0125 / 8),
    Case(name="envs are the limit", workers=8, sigma=0.5, shortest=8, longest=32, step_s=0.1, row_s=0.005 / 8),
    Case(name="the conductor matters: 64 workers", workers=64, sigma=0.5, shortest=8, longest=32, step_s=0.4, row_s=0.0002 / 8),
)


def compare(seconds: float) -> Iterator[tuple[Case, float, float]]:
    """(case, chunks per second played, chunks per second on paper) for each."""
    for case in CASES:
        played = case.play(seconds)
        yield case, played, case.simulate(round(played * seconds))
