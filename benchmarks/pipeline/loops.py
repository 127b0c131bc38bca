"""The loops that the pipelined rollout is compared with, and the pipelined rollout driven the same way.

All play the same kind of episodes with the same components, refill or not as they say, and count the decisions (chunks of one
slot) that belong to an episode.
"""

import itertools
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from vla_train.config import EnvConfig, RolloutConfig
from vla_train.pipeline.env_group import EnvGroup, GroupResult, make_env_group
from vla_train.pipeline.rollout import Rollout
from vla_train.pipeline.timeline import Timeline
from vla_train.pipeline.workers import make_workers
from vla_train.policy.base import Policy
from vla_train.types import EpisodeSpec, Observation

GROUP_SIZE = 8

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


def _decide(policy: Policy, group: EnvGroup, result: GroupResult, slots: np.ndarray, random: np.random.Generator) -> np.ndarray:
    actions = np.zeros((group.description.num_slots, policy.chunk_size, policy.action_dim), np.float32)
    observation = Observation(images=result.images[slots], instructions=tuple(result.instructions[slot] for slot in slots))
    uniforms = random.random((len(slots), policy.chunk_size * policy.action_dim), dtype=np.float32)
    actions[slots] = policy.act(observation, uniforms=uniforms, temperature=1.0).actions
    return actions


def play_serially(config: EnvConfig, policy: Policy, make_spec: MakeSpec, *, seconds: float) -> Played:
    """The same components without any overlap: each group in turn decides and steps; finished slots are refilled.

    The first round, in which things are compiled and loaded, is not counted.
    """
    groups = [make_env_group(config, chunk_size=policy.chunk_size, seed=index) for index in range(config.num_groups)]
    random = np.random.default_rng(0)
    playing = [np.zeros(config.envs_per_group, bool) for _ in groups]
    results: list[GroupResult | None] = [None] * len(groups)
    numbers = itertools.count()
    decisions, start = 0, time.perf_counter()
    for round_number in itertools.count():
        if round_number == 1:
            decisions, start = 0, time.perf_counter()
        elif round_number > 1 and time.perf_counter() - start >= seconds:
            break
        for index, group in enumerate(groups):
            free = [int(slot) for slot in np.flatnonzero(~playing[index])]
            if free:
                results[index] = group.reset(free, [make_spec(next(numbers), 0, 0) for _ in free])
                playing[index][free] = True
            latest = results[index]
            assert latest is not None
            actions = _decide(policy, group, latest, np.arange(config.envs_per_group), random)
            results[index] = result = group.step(actions, playing[index].copy())
            decisions += config.envs_per_group
            playing[index] &= ~(result.terminated | result.truncated)
    elapsed = time.perf_counter() - start
    for group in groups:
        group.close()
    return Played(decisions=decisions, seconds=elapsed)


def play_in_lockstep(config: EnvConfig, policy: Policy, make_spec: MakeSpec, *, rounds: int, longest: int) -> Played:
    """Stages in a fixed order, as RLinf's pipelined rollout: serve stage 0, 1, ..., wait for each one's envs in turn, and run
    every slot to the time limit; new episodes begin when all stages are through. Env steps do overlap with the policy."""
    groups = [make_env_group(config, chunk_size=policy.chunk_size, seed=index) for index in range(config.num_groups)]
    numbers = itertools.count()
    random = np.random.default_rng(0)
    decisions = 0
    start = time.perf_counter()
    for _ in range(rounds):
        stages = [_Stage(group, [make_spec(next(numbers), 0, 0) for _ in range(config.envs_per_group)]) for group in groups]
        for _ in range(longest):
            for stage in stages:
                stage.wait()
                stage.step(_decide(policy, stage.group, stage.result, np.arange(config.envs_per_group), random))
        for stage in stages:
            stage.wait()
            decisions += stage.decisions
    elapsed = time.perf_counter() - start
    for group in groups:
        group.close()
    return Played(decisions=decisions, seconds=elapsed)


class _Stage:
    """One env group stepping in the background, its slots playing one episode each."""

    def __init__(self, group: EnvGroup, specs: Sequence[EpisodeSpec]) -> None:
        self.group = group
        self.result = group.reset(range(len(specs)), specs)
        self.decisions = 0
        self._playing = np.ones(len(specs), bool)
        self._thread: threading.Thread | None = None

    def step(self, actions: np.ndarray) -> None:
        self._thread = threading.Thread(target=self._step, args=(actions,))
        self._thread.start()

    def _step(self, actions: np.ndarray) -> None:
        self.result = self.group.step(actions, self._playing)
        self.decisions += int(self._playing.sum())
        self._playing = self._playing & ~(self.result.terminated | self.result.truncated)

    def wait(self) -> None:
        if self._thread is not None:
            self._thread.join()
            self._thread = None


def play_pipelined(
    config: EnvConfig,
    policy: Policy,
    make_spec: MakeSpec,
    *,
    seconds: float,
    max_policy_batch: int = 256,
    timeline: Timeline | None = None,
) -> Played:
    """The rollout under test, as training uses it: every slot refilled, into the next iteration too.

    The first iteration, in which all episodes begin at once and things are compiled and loaded, is not counted.
    """
    workers = make_workers(config, chunk_size=policy.chunk_size, seed=0)
    slots = config.num_groups * config.envs_per_group
    settings = RolloutConfig(
        groups_per_iteration=max(1, slots // GROUP_SIZE), group_size=GROUP_SIZE, max_policy_batch=max_policy_batch
    )
    rollout = Rollout(settings, policy=policy, workers=workers, timeline=timeline or Timeline(), seed=0)

    def prompts() -> Iterator[tuple[EpisodeSpec, ...]]:
        for group in itertools.count():
            yield tuple(make_spec(group * GROUP_SIZE + sample, group, sample) for sample in range(GROUP_SIZE))

    source, played = prompts(), []
    try:
        rollout.collect(source, lambda group: True)
        start = time.perf_counter()
        while not played or time.perf_counter() - start < seconds:
            played.append(rollout.collect(source, lambda group: True).stats)
    finally:
        rollout.close()
    elapsed = sum(stats.duration_s for stats in played)
    return Played(
        decisions=sum(stats.decisions for stats in played),
        seconds=elapsed,
        efficiency=sum(stats.overlap_efficiency * stats.duration_s for stats in played) / elapsed,
    )
