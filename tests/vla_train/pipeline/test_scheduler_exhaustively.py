"""Every state that a small rollout can get into, whatever the order of events: none breaks an invariant, none is a dead end."""

import copy
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import chain, combinations

import pytest
from pipeline_envs import make_spec

from vla_train.pipeline.scheduler import Scheduler, WorkerState


@dataclass
class Situation:
    """A scheduler, and what a rollout knows besides."""

    scheduler: Scheduler
    faults_left: int
    ready: list[int] = field(default_factory=list)
    """Workers in the order in which they became ready: kept apart from the scheduler's own order."""
    finished: tuple[int, ...] = ()

    def key(self, num_workers: int) -> tuple[object, ...]:
        """Equal for situations that cannot be told apart: leases count by their order only."""
        playing = [self.scheduler.playing(worker) for worker in range(num_workers)]
        leases = sorted(assignment.lease for assignments in playing for assignment in assignments)
        return (
            tuple(self.scheduler.state(worker) for worker in range(num_workers)),
            tuple(tuple((a.slot, a.spec.group_id, leases.index(a.lease)) for a in assignments) for assignments in playing),
            tuple(spec.group_id for spec in self.scheduler._queue),
            tuple(self.ready),
            self.finished,
            self.faults_left,
        )


def successors(now: Situation, num_workers: int) -> Iterator[Situation]:
    """All that can happen next."""

    def after() -> Situation:
        return copy.deepcopy(now)

    filled = after()
    for worker in filled.scheduler.fill():
        if worker in filled.ready:
            filled.ready.remove(worker)
    yield filled
    if now.ready:
        served = after()
        batch = served.scheduler.next_batch()
        assert list(batch) == now.ready[: len(batch)], "not served in the order of readiness"
        rows = sum(len(now.scheduler.playing(worker)) for worker in batch)
        assert rows <= now.scheduler._max_batch or len(batch) == 1, "more rows than the policy takes"
        del served.ready[: len(batch)]
        yield served
    for worker in range(num_workers):
        state, playing = now.scheduler.state(worker), now.scheduler.playing(worker)
        if state is not WorkerState.DOWN and now.faults_left:
            lost = after()
            lost.scheduler.died(worker)
            lost.faults_left -= 1
            if worker in lost.ready:
                lost.ready.remove(worker)
            yield lost
        match state:
            case WorkerState.RESETTING:
                reset = after()
                reset.scheduler.reset_done(worker)
                reset.ready += [worker] if playing else []
                yield reset
            case WorkerState.DECIDING:
                decided = after()
                assert decided.scheduler.decided(worker) == bool(playing)
                yield decided
                withdrawn = after()
                withdrawn.scheduler.withdraw(worker)
                withdrawn.ready += [worker] if playing else []
                yield withdrawn
            case WorkerState.STEPPING:
                for ended in chain.from_iterable(combinations(playing, size) for size in range(len(playing) + 1)):
                    stepped = after()
                    stepped.scheduler.stepped(worker, finished=[assignment.slot for assignment in ended])
                    ids = [assignment.spec.group_id for assignment in ended]
                    assert not set(ids) & set(now.finished), "played twice"
                    stepped.finished = tuple(sorted([*now.finished, *ids]))
                    stepped.ready += [worker] if len(ended) < len(playing) else []
                    yield stepped
            case WorkerState.DOWN:
                restored = after()
                restored.scheduler.restored(worker)
                yield restored


def check(now: Situation, slots: list[int], whole: list[bool], episodes: int) -> None:
    """What must hold in every situation."""
    scheduler = now.scheduler
    playing = [scheduler.playing(worker) for worker in range(len(slots))]
    under_way = [assignment.spec.group_id for assignments in playing for assignment in assignments]
    waiting = [spec.group_id for spec in scheduler._queue]
    assert sorted([*under_way, *waiting, *now.finished]) == list(range(episodes)), "an episode was lost or doubled"
    for worker, assignments in enumerate(playing):
        assert len({assignment.slot for assignment in assignments}) == len(assignments) <= slots[worker]
        if scheduler.state(worker) in (WorkerState.IDLE, WorkerState.DOWN):
            assert not assignments
        if scheduler.state(worker) is WorkerState.READY:
            assert assignments
            assert worker in now.ready
    filled = copy.deepcopy(scheduler)
    filled.fill()
    for worker in range(len(slots)):
        if filled.queued and filled.state(worker) in (WorkerState.IDLE, WorkerState.READY):
            busy = len(filled.playing(worker))
            assert busy == slots[worker] or (whole[worker] and busy), "a slot idles while work waits"


@pytest.mark.parametrize(
    ("slots", "whole", "max_batch", "episodes", "faults"),
    [
        ([1, 1], [False, False], 1, 4, 1),
        ([2, 1], [False, False], 2, 5, 0),
        ([2, 1], [True, False], 3, 4, 1),
        ([1, 1, 1], [False, True, False], 2, 4, 0),
    ],
)
def test_every_reachable_situation_keeps_the_invariants_and_leads_to_the_end(
    slots: list[int], whole: list[bool], max_batch: int, episodes: int, faults: int
) -> None:
    start = Situation(scheduler=Scheduler(slots, whole_resets=whole, max_batch=max_batch), faults_left=faults)
    start.scheduler.submit(make_spec(number) for number in range(episodes))
    workers = len(slots)
    seen = {start.key(workers): start}
    comes_from: dict[tuple[object, ...], set[tuple[object, ...]]] = defaultdict(set)
    unexplored = [start.key(workers)]
    while unexplored:
        key = unexplored.pop()
        check(seen[key], slots, whole, episodes)
        for successor in successors(seen[key], workers):
            successor_key = successor.key(workers)
            comes_from[successor_key].add(key)
            if successor_key not in seen:
                seen[successor_key] = successor
                unexplored.append(successor_key)
    assert len(seen) > 200, "too small to mean anything"
    ends = [key for key, situation in seen.items() if len(situation.finished) == episodes]
    leads_to_the_end, spreading = set(ends), list(ends)
    while spreading:
        for key in comes_from[spreading.pop()] - leads_to_the_end:
            leads_to_the_end.add(key)
            spreading.append(key)
    assert leads_to_the_end == set(seen), "there is a dead end"
