"""A policy that decides elsewhere: two calls under way, and nothing else changes."""

import itertools
import queue
import random
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from pipeline_envs import DrawingPolicy, assert_played_as_alone, drift_config, make_spec

from vla_train.config import RolloutConfig
from vla_train.envs.shard import ShardResult
from vla_train.envs.worker import Command, EnvWorker, Started, WorkerFault
from vla_train.envs.workers import make_workers
from vla_train.pipeline.conductor import Conductor
from vla_train.pipeline.messages import Decided, FromConductor, PolicyBatch, Stop
from vla_train.pipeline.objectives import PlayEpisodes
from vla_train.pipeline.rollout import Rollout
from vla_train.pipeline.timeline import Timeline
from vla_train.types import ArraySpec, EnvDescription, EpisodeSpec, Group, Observation, PolicyOutput

LONG_S = 60.0
"""Only a deadlock takes that long."""


class Call:
    """A `PolicyCall` that a thread decides."""

    def __init__(self, policy: "DistantPolicy", future: Future[PolicyOutput]) -> None:
        self._policy, self._future = policy, future

    def ready(self, wait_s: float) -> bool:
        try:
            self._future.exception(timeout=wait_s)
        except TimeoutError:
            return False
        return True

    def result(self) -> PolicyOutput:
        self._policy.under_way -= 1
        return self._future.result(LONG_S)


class DistantPolicy(DrawingPolicy):
    """Decides in another thread, one call after the other, after a random while.

    Args:
        fails: The call that raises.
        waits_for_second: Whether the first call is decided only when a second has begun.
    """

    def __init__(self, *, fails: int | None = None, waits_for_second: bool = False, jitter_s: float = 0.0) -> None:
        super().__init__()
        self._thread = ThreadPoolExecutor(1)
        self._fails, self._jitter_s = fails, jitter_s
        self._begun = 0
        self.under_way = 0
        self.most_under_way = 0
        self._first_may_end = threading.Event()
        if not waits_for_second:
            self._first_may_end.set()

    def begin_act(self, observation: Observation, *, uniforms: np.ndarray | None, temperature: float) -> Call:
        number, self._begun = self._begun, self._begun + 1
        self.under_way += 1
        self.most_under_way = max(self.most_under_way, self.under_way)
        if number == 1:
            self._first_may_end.set()
        return Call(self, self._thread.submit(self._decide, number, observation, uniforms, temperature))

    def _decide(self, number: int, observation: Observation, uniforms: np.ndarray | None, temperature: float) -> PolicyOutput:
        assert self._first_may_end.wait(LONG_S), "nothing else was begun while the first call was under way"
        time.sleep(random.uniform(0, self._jitter_s))
        if number == self._fails:
            raise FloatingPointError(f"call {number} broke")
        return super().act(observation, uniforms=uniforms, temperature=temperature)

    def act(self, observation: Observation, *, uniforms: np.ndarray | None, temperature: float) -> PolicyOutput:
        raise AssertionError("it was asked to wait")


def make_rollout(policy: DrawingPolicy, **config: Any) -> Rollout:
    workers = make_workers(drift_config(), chunk_size=DrawingPolicy.chunk_size)
    settings = {"groups_per_iteration": 3, "group_size": 4, "max_attempts": 5.0, "deterministic": True, **config}
    return Rollout(RolloutConfig(**settings), policy=policy, workers=workers, timeline=Timeline(), seed=11)


def prompts() -> Iterator[tuple[EpisodeSpec, ...]]:
    return (tuple(make_spec(group, sample) for sample in range(4)) for group in itertools.count())


def mixed(group: Group) -> bool:
    return 0 < group.success_rate < 1


def assert_plays_as_alone(rollout: Rollout, episodes: Iterator[tuple[EpisodeSpec, ...]] | None = None) -> None:
    groups = rollout.collect(episodes or prompts(), mixed).groups
    assert [group.group_id for group in groups] == [4, 6, 9]
    for trajectory in (trajectory for group in groups for trajectory in group.trajectories):
        assert_played_as_alone(trajectory, seed=11)


@pytest.mark.parametrize("max_policy_batch", [1, 2, 3, 256])
@pytest.mark.parametrize("jitter_s", [0.0, 0.003])
def test_a_policy_that_decides_elsewhere_plays_the_same_episodes(max_policy_batch: int, jitter_s: float) -> None:
    policy = DistantPolicy(jitter_s=jitter_s)
    rollout = make_rollout(policy, max_policy_batch=max_policy_batch)
    try:
        assert_plays_as_alone(rollout)
        for trajectory in rollout.play([make_spec(group) for group in range(5)], temperature=0.0):
            assert_played_as_alone(trajectory, seed=None)
    finally:
        rollout.close()


def test_the_next_call_begins_while_one_is_under_way_and_never_a_third() -> None:
    policy = DistantPolicy(waits_for_second=True)
    rollout = make_rollout(policy, max_policy_batch=3)  # the rows of one worker
    try:
        assert_plays_as_alone(rollout)
    finally:
        rollout.close()
    assert policy.most_under_way == 2


@pytest.mark.parametrize("fails", [0, 1])
def test_an_error_in_the_first_or_the_second_call_is_the_callers_and_nothing_is_lost(fails: int) -> None:
    policy = DistantPolicy(fails=fails, waits_for_second=True)
    rollout, episodes = make_rollout(policy, max_policy_batch=3), prompts()
    try:
        with pytest.raises(FloatingPointError, match=f"call {fails} broke"):
            rollout.collect(episodes, mixed)
        policy.under_way = 0  # what was begun is forgotten
        assert_plays_as_alone(rollout, episodes)
    finally:
        rollout.close()


class StillWorker(EnvWorker):
    """Answers when the test says so."""

    def __init__(self, index: int, commands: "queue.SimpleQueue[int]") -> None:
        super().__init__(drift_config(num_workers=3, envs_per_worker=1), index=index, chunk_size=3)
        bound = np.ones(2, np.float32)
        self.description = EnvDescription(
            observations={"image": ArraySpec((1,), "uint8")}, action_low=-bound, action_high=bound
        )
        self._commands = commands

    def start(self) -> None:
        self._emit(self.incarnation, Started(description=self.description))

    def send(self, command: Command) -> None:
        self._commands.put(self.index)

    def answer(self) -> None:
        self._emit(self.incarnation, ShardResult.of_reset({"image": np.zeros((1, 1), np.uint8)}, ("go",)))

    def die(self) -> None:
        self._emit(self.incarnation, WorkerFault(error=RuntimeError("killed by signal 9")))

    def kill(self) -> None:
        self.incarnation += 1

    def close(self) -> None:
        pass


@pytest.mark.parametrize(("max_batch", "second"), [(256, (1, 2)), (1, (1,))])
def test_a_second_call_is_offered_when_it_can_grow_no_more(max_batch: int, second: tuple[int, ...]) -> None:
    commands: queue.SimpleQueue[int] = queue.SimpleQueue()
    workers = [StillWorker(index, commands) for index in range(3)]
    conductor = Conductor(workers, keys=("image",), max_batch=max_batch, max_wait_s=0.0, timeline=Timeline(), calls=2)
    outbox: queue.SimpleQueue[FromConductor] = queue.SimpleQueue()
    objective = PlayEpisodes(iter([make_spec(group) for group in range(3)]), [])
    thread = threading.Thread(target=conductor.run, args=(objective, outbox), daemon=True)
    thread.start()
    try:
        assert sorted(commands.get(timeout=LONG_S) for _ in workers) == [0, 1, 2]
        batches: list[PolicyBatch] = []
        for worker, offered in ((workers[0], (0,)), (workers[1], None), (workers[2], second)):
            worker.answer()
            if offered is not None:
                message = outbox.get(timeout=LONG_S)
                assert isinstance(message, PolicyBatch)
                assert message.workers == offered
                batches.append(message)
        assert outbox.empty(), "a third call is under way"
    finally:
        conductor.inbox.put(Stop())
        thread.join(LONG_S)
    assert conductor.counts.batches == 2
    conductor.withdraw()
    assert conductor.scheduler.ready_rows == 3


def test_a_worker_that_dies_while_one_call_decides_plays_on_in_the_next_call() -> None:
    commands: queue.SimpleQueue[int] = queue.SimpleQueue()
    workers = [StillWorker(index, commands) for index in range(2)]
    conductor = Conductor(workers, keys=("image",), max_batch=256, max_wait_s=0.0, timeline=Timeline(), calls=2)
    outbox: queue.SimpleQueue[FromConductor] = queue.SimpleQueue()
    objective = PlayEpisodes(iter([make_spec(group) for group in range(2)]), [])
    thread = threading.Thread(target=conductor.run, args=(objective, outbox), daemon=True)
    thread.start()

    def offered() -> PolicyBatch:
        message = outbox.get(timeout=LONG_S)
        assert isinstance(message, PolicyBatch), message
        return message

    def decide(batch: PolicyBatch) -> None:
        rows = len(batch.rows)
        actions, decision = np.zeros((rows, 3, 2), np.float32), {"logprobs": np.zeros((rows, 3), np.float32)}
        output = PolicyOutput(actions=actions, decision=decision, policy_version=0)
        conductor.inbox.put(Decided(batch=batch, observations={"image": np.zeros((rows, 1), np.uint8)}, outputs=(output,)))

    try:
        assert sorted(commands.get(timeout=LONG_S) for _ in workers) == [0, 1]
        workers[0].answer()
        first = offered()
        assert first.workers == (0,)
        workers[0].die()
        assert commands.get(timeout=LONG_S) == 0  # its episode begins again
        for worker in workers:
            worker.answer()
        second = offered()
        assert second.workers == (0, 1)
        decide(first)
        decide(second)
        assert sorted(commands.get(timeout=LONG_S) for _ in workers) == [0, 1], "each steps once, by what the second call says"
        assert conductor.counts.restarts == 1
        assert outbox.empty()
    finally:
        conductor.inbox.put(Stop())
        thread.join(LONG_S)
