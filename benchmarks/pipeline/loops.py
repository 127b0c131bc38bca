"""The loops that the pipelined rollout is compared with, and the pipelined rollout driven the same way.

All play the same kind of episodes with the same components, refill or not as they say, and count the decisions (chunks of one
slot) that belong to an episode.
"""

import itertools
import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from vla_train.config import AlgoConfig, EnvConfig, OptimConfig, RolloutConfig
from vla_train.envs.factory import make_env_shard
from vla_train.envs.shard import EnvShard, ShardResult
from vla_train.envs.worker import Command, EnvWorker, Event, Reset, Step, WorkerFault
from vla_train.envs.workers import close_workers, make_workers
from vla_train.pipeline.rollout import Rollout
from vla_train.pipeline.timeline import Timeline
from vla_train.policy.base import Policy, TrainablePolicy
from vla_train.trainer.group_trainer import GroupTrainer, UpdateMetrics
from vla_train.types import EpisodeSpec, Observation

GROUP_SIZE = 8
KEYS = ("image",)

MakeSpec = Callable[[int, int, int], EpisodeSpec]
"""(number of the episode, group_id, sample_id) -> spec."""


@dataclass(frozen=True, kw_only=True)
class Played:
    """What a loop achieved."""

    decisions: int
    seconds: float
    efficiency: float = 0.0
    """Overlap efficiency, where it was measured."""

    @property
    def decisions_per_s(self) -> float:
        return self.decisions / self.seconds


def _decide(policy: Policy, result: ShardResult, slots: np.ndarray, random: np.random.Generator) -> np.ndarray:
    actions = np.zeros((len(result.observations["image"]), policy.chunk_size, policy.action_dim), np.float32)
    observation = Observation(
        arrays={"image": result.observations["image"][slots]}, instructions=tuple(result.instructions[slot] for slot in slots)
    )
    uniforms = random.random((len(slots), policy.num_uniforms), dtype=np.float32)
    actions[slots] = policy.act(observation, uniforms=uniforms, temperature=1.0).actions
    return actions


@contextmanager
def started_workers(config: EnvConfig, *, chunk_size: int) -> Iterator[list[EnvWorker]]:
    """Workers, closed at the end of the block."""
    workers = make_workers(config, chunk_size=chunk_size)
    try:
        yield workers
    finally:
        close_workers(workers)


def play_serially(workers: Sequence[EnvWorker], policy: Policy, make_spec: MakeSpec, *, seconds: float) -> Played:
    """The same components without any overlap: each worker in turn decides and steps; finished slots are refilled.

    The first round, in which things are compiled and loaded, is not counted. Workers are idle before and afterwards.
    """
    events: queue.SimpleQueue[Event] = queue.SimpleQueue()

    def ask(worker: EnvWorker, command: Command) -> ShardResult:
        worker.send(command)
        content = events.get().content
        if isinstance(content, WorkerFault):
            raise content.error
        assert isinstance(content, ShardResult)
        return content

    random = np.random.default_rng(0)
    slots = [worker.description.num_slots for worker in workers]
    playing = [np.zeros(count, bool) for count in slots]
    results: list[ShardResult | None] = [None] * len(workers)
    numbers = itertools.count()
    for worker in workers:
        worker.connect(events.put)
    decisions, start = 0, time.perf_counter()
    for round_number in itertools.count():
        if round_number == 1:
            decisions, start = 0, time.perf_counter()
        elif round_number > 1 and time.perf_counter() - start >= seconds:
            break
        for index, worker in enumerate(workers):
            free = tuple(int(slot) for slot in np.flatnonzero(~playing[index]))
            if free:
                specs = tuple(make_spec(next(numbers), 0, 0) for _ in free)
                results[index] = ask(worker, Reset(slots=free, specs=specs, keys=KEYS))
                playing[index][list(free)] = True
            latest = results[index]
            assert latest is not None
            actions = _decide(policy, latest, np.arange(slots[index]), random)
            results[index] = result = ask(worker, Step(actions=actions, active=playing[index].copy(), keys=KEYS))
            decisions += slots[index]
            playing[index] &= ~(result.terminated | result.truncated)
    return Played(decisions=decisions, seconds=time.perf_counter() - start)


def play_in_lockstep(config: EnvConfig, policy: Policy, make_spec: MakeSpec, *, rounds: int, longest: int) -> Played:
    """Stages in a fixed order, as RLinf's pipelined rollout: serve stage 0, 1, ..., wait for each one's envs in turn, and run
    every slot to the time limit; new episodes begin when all stages are through. Env steps do overlap with the policy."""
    shards = [make_env_shard(config, chunk_size=policy.chunk_size) for _ in range(config.num_workers)]
    numbers = itertools.count()
    random = np.random.default_rng(0)
    decisions = 0
    start = time.perf_counter()
    for _ in range(rounds):
        stages = [_Stage(shard, [make_spec(next(numbers), 0, 0) for _ in range(config.envs_per_worker)]) for shard in shards]
        for _ in range(longest):
            for stage in stages:
                stage.wait()
                stage.step(_decide(policy, stage.result, np.arange(config.envs_per_worker), random))
        for stage in stages:
            stage.wait()
            decisions += stage.decisions
    elapsed = time.perf_counter() - start
    for shard in shards:
        shard.close()
    return Played(decisions=decisions, seconds=elapsed)


class _Stage:
    """One shard stepping in the background, its slots playing one episode each."""

    def __init__(self, shard: EnvShard, specs: Sequence[EpisodeSpec]) -> None:
        self._shard = shard
        self.result = shard.reset(range(len(specs)), specs, KEYS)
        self.decisions = 0
        self._playing = np.ones(len(specs), bool)
        self._thread: threading.Thread | None = None

    def step(self, actions: np.ndarray) -> None:
        self._thread = threading.Thread(target=self._step, args=(actions,))
        self._thread.start()

    def _step(self, actions: np.ndarray) -> None:
        self.result = self._shard.step(actions, self._playing, KEYS)
        self.decisions += int(self._playing.sum())
        self._playing = self._playing & ~(self.result.terminated | self.result.truncated)

    def wait(self) -> None:
        if self._thread is not None:
            self._thread.join()
            self._thread = None


class PipelinedLoop:
    """The rollout under test, as training uses it: every slot refilled, into the next iteration too.

    Args:
        workers: Idle ones; whoever made them closes them.
        policy: Decides.
        make_spec: Episodes to play.
        groups_per_iteration: Length of an iteration; None plays about one episode per slot.
        max_policy_batch: Most rows of one policy call.
        timeline: Takes all spans.
    """

    def __init__(
        self,
        workers: Sequence[EnvWorker],
        policy: Policy,
        make_spec: MakeSpec,
        *,
        groups_per_iteration: int | None = None,
        max_policy_batch: int = 256,
        timeline: Timeline | None = None,
    ) -> None:
        slots = sum(worker.description.num_slots for worker in workers)
        settings = RolloutConfig(
            groups_per_iteration=groups_per_iteration or max(1, slots // GROUP_SIZE),
            group_size=GROUP_SIZE,
            max_policy_batch=max_policy_batch,
        )
        self._rollout = Rollout(settings, policy=policy, workers=workers, timeline=timeline or Timeline(), seed=0)
        self._prompts = (
            tuple(make_spec(group * GROUP_SIZE + sample, group, sample) for sample in range(GROUP_SIZE))
            for group in itertools.count()
        )

    def play(self, *, seconds: float) -> Played:
        """Whole iterations for at least so long. The first one, in which episodes begin and things load, is not counted."""
        played = []
        self._rollout.collect(self._prompts, lambda group: True)
        start = time.perf_counter()
        while not played or time.perf_counter() - start < seconds:
            played.append(self._rollout.collect(self._prompts, lambda group: True).stats)
        played = [stats for stats in played if stats.decisions]  # the others were carried over as a whole, in no time
        elapsed = sum(stats.duration_s for stats in played)
        return Played(
            decisions=sum(stats.decisions for stats in played),
            seconds=elapsed,
            efficiency=sum(stats.overlap_efficiency * stats.duration_s for stats in played) / elapsed,
        )


@dataclass(frozen=True, kw_only=True)
class Trained:
    """What iterations of rollout and update took."""

    iteration_s: float
    """Seconds, their mean."""
    rows: int
    """Trained on."""
    rows_during_rollout: int


def play_and_train(
    config: EnvConfig, policy: TrainablePolicy, make_spec: MakeSpec, *, groups: int, accumulate: bool, seconds: float
) -> Trained:
    """Iterations as a run does them, for at least so long. The first one, in which everything begins, is not counted.

    Args:
        config: Of the workers.
        policy: Decides, and is trained.
        make_spec: Episodes to play.
        groups: Of an iteration.
        accumulate: Train while others play (`optim.accumulate_during_rollout`), or only afterwards.
        seconds: Length of the measurement; whole iterations.
    """
    settings = RolloutConfig(groups_per_iteration=groups, group_size=GROUP_SIZE)
    optim = OptimConfig(minibatch_trajectories=groups * GROUP_SIZE, accumulate_during_rollout=accumulate)
    trainer = GroupTrainer(optim, AlgoConfig(), policy=policy, temperature=1.0, total_steps=1, seed=0)
    prompts = (
        tuple(make_spec(group * GROUP_SIZE + sample, group, sample) for sample in range(GROUP_SIZE))
        for group in itertools.count()
    )
    updates: list[UpdateMetrics] = []
    with started_workers(config, chunk_size=policy.chunk_size) as workers:
        rollout = Rollout(settings, policy=policy, workers=workers, timeline=Timeline(), seed=0)
        for iteration in itertools.count():
            if iteration == 1:
                updates, start = [], time.perf_counter()
            elif iteration > 1 and time.perf_counter() - start >= seconds:
                break
            result = rollout.collect(prompts, lambda group: True, meanwhile=trainer.accumulate if accumulate else None)
            rollout.prefetch(prompts)
            updates.append(trainer.update(result.groups, iteration=iteration))
        elapsed = time.perf_counter() - start
    return Trained(
        iteration_s=elapsed / len(updates),
        rows=sum(update.rows for update in updates),
        rows_during_rollout=sum(update.rows_during_rollout for update in updates),
    )
