"""The scheduler's invariants, whatever happens in whatever order."""

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from pipeline_envs import make_spec

from vla_train.pipeline.scheduler import Scheduler, WorkerState

BUSY = (WorkerState.RESETTING, WorkerState.DECIDING, WorkerState.STEPPING, WorkerState.DOWN)


class SchedulerMachine(RuleBasedStateMachine):
    """Plays the rollout's part with arbitrary timing, faults and evictions, and keeps its own books."""

    @initialize(
        workers=st.lists(st.tuples(st.integers(1, 4), st.booleans()), min_size=1, max_size=4),
        max_batch=st.integers(1, 8),
        waiting=st.integers(0, 12),
        all_ready=st.booleans(),
    )
    def start(self, workers: list[tuple[int, bool]], max_batch: int, waiting: int, all_ready: bool) -> None:
        self.slots = [slots for slots, _ in workers]
        self.whole = [whole for _, whole in workers]
        self.max_batch = max_batch
        self.scheduler = Scheduler(self.slots, whole_resets=self.whole, max_batch=max_batch)
        self.submitted = 0
        self.finished: Counter[int] = Counter()
        self.ready_order: list[int] = []
        self.filled = False
        self.scheduler.submit(make_spec(number) for number in range(waiting))
        self.submitted = waiting
        if all_ready:
            for worker in self.scheduler.fill():
                self.scheduler.reset_done(worker)
                self.ready_order.append(worker)

    def workers_in(self, *states: WorkerState) -> list[int]:
        return [worker for worker in range(len(self.slots)) if self.scheduler.state(worker) in states]

    def outstanding(self) -> Counter[int]:
        counts = Counter({group: 1 for group in range(self.submitted)})
        counts.subtract(self.finished)
        return +counts

    @rule(count=st.integers(1, 6))
    def submit(self, count: int) -> None:
        self.scheduler.submit(make_spec(self.submitted + index) for index in range(count))
        self.submitted += count
        self.filled = False

    @rule()
    def fill(self) -> None:
        before = {worker: len(self.scheduler.playing(worker)) for worker in range(len(self.slots))}
        states = {worker: self.scheduler.state(worker) for worker in range(len(self.slots))}
        given_out = self.scheduler.fill()
        for worker, assignments in given_out.items():
            assert states[worker] not in BUSY
            assert not (self.whole[worker] and before[worker]), "a group that resets as a whole was refilled while playing"
            assert self.scheduler.state(worker) is WorkerState.RESETTING
            assert len({assignment.slot for assignment in assignments}) == len(assignments)
            if worker in self.ready_order:
                self.ready_order.remove(worker)
        order = [a.lease for assignments in given_out.values() for a in assignments]
        ids = {a.lease: a.spec.group_id for assignments in given_out.values() for a in assignments}
        assert len(set(order)) == len(order)
        assert [ids[lease] for lease in sorted(order)] == sorted(ids.values()) or self.had_faults
        self.filled = True

    had_faults = False

    @precondition(lambda self: self.workers_in(WorkerState.RESETTING))
    @rule(data=st.data())
    def reset_done(self, data: st.DataObject) -> None:
        worker = data.draw(st.sampled_from(self.workers_in(WorkerState.RESETTING)))
        self.scheduler.reset_done(worker)
        if self.scheduler.playing(worker):
            self.ready_order.append(worker)
        self.filled = False

    @rule()
    def next_batch(self) -> None:
        batch = self.scheduler.next_batch()
        assert list(batch) == self.ready_order[: len(batch)], "not served in the order of readiness"
        rows = sum(len(self.scheduler.playing(worker)) for worker in batch)
        assert rows <= self.max_batch or len(batch) == 1
        if self.ready_order:
            assert batch
            following = self.ready_order[len(batch) :]
            if following:
                assert rows + len(self.scheduler.playing(following[0])) > self.max_batch, "room left and not used"
        del self.ready_order[: len(batch)]

    @precondition(lambda self: self.workers_in(WorkerState.DECIDING))
    @rule(data=st.data(), withdrawn=st.booleans())
    def decide(self, data: st.DataObject, withdrawn: bool) -> None:
        worker = data.draw(st.sampled_from(self.workers_in(WorkerState.DECIDING)))
        playing = bool(self.scheduler.playing(worker))
        if withdrawn:
            self.scheduler.withdraw(worker)
            if playing:
                self.ready_order.append(worker)
        else:
            assert self.scheduler.decided(worker) == playing
        self.filled = False

    @precondition(lambda self: self.workers_in(WorkerState.STEPPING))
    @rule(data=st.data())
    def stepped(self, data: st.DataObject) -> None:
        worker = data.draw(st.sampled_from(self.workers_in(WorkerState.STEPPING)))
        playing = self.scheduler.playing(worker)
        ended = [assignment for assignment in playing if data.draw(st.booleans())]
        self.scheduler.stepped(worker, finished=[assignment.slot for assignment in ended])
        for assignment in ended:
            self.finished[assignment.spec.group_id] += 1
        if len(ended) < len(playing):
            self.ready_order.append(worker)
        self.filled = False

    @precondition(lambda self: self.workers_in(*(state for state in WorkerState if state is not WorkerState.DOWN)))
    @rule(data=st.data())
    def lose(self, data: st.DataObject) -> None:
        up = self.workers_in(*(state for state in WorkerState if state is not WorkerState.DOWN))
        worker = data.draw(st.sampled_from(up))
        playing = [assignment.spec for assignment in self.scheduler.playing(worker)]
        assert sorted(s.group_id for s in self.scheduler.died(worker)) == sorted(s.group_id for s in playing)
        if worker in self.ready_order:
            self.ready_order.remove(worker)
        self.had_faults = True
        self.filled = False

    @precondition(lambda self: self.workers_in(WorkerState.DOWN))
    @rule(data=st.data())
    def restore(self, data: st.DataObject) -> None:
        self.scheduler.restored(data.draw(st.sampled_from(self.workers_in(WorkerState.DOWN))))
        self.filled = False

    @rule()
    def evict(self) -> None:
        specs = self.scheduler.evict_all()
        assert Counter(spec.group_id for spec in specs) == self.outstanding()
        self.scheduler.submit(specs)
        self.ready_order.clear()
        self.had_faults = True
        self.filled = False

    @invariant()
    def no_episode_is_lost_or_played_twice(self) -> None:
        assert all(count == 1 for count in self.finished.values())
        assert self.scheduler.queued + self.scheduler.in_flight == self.submitted - sum(self.finished.values())

    @invariant()
    def counts_are_those_of_a_recount(self) -> None:
        playing = sum(len(self.scheduler.playing(worker)) for worker in range(len(self.slots)))
        assert self.scheduler.in_flight == playing
        assert self.scheduler.wanted == max(0, sum(self.slots) - playing - self.scheduler.queued)
        assert self.scheduler.stepping == len(self.workers_in(WorkerState.STEPPING, WorkerState.RESETTING))

    @invariant()
    def in_flight_work_is_bounded_by_the_slots(self) -> None:
        for worker, slots in enumerate(self.slots):
            playing = self.scheduler.playing(worker)
            assert len({assignment.slot for assignment in playing}) == len(playing) <= slots

    @invariant()
    def no_slot_idles_while_work_waits(self) -> None:
        if not self.filled or not self.scheduler.queued:
            return
        for worker in self.workers_in(WorkerState.IDLE, WorkerState.READY):
            playing = len(self.scheduler.playing(worker))
            assert playing == self.slots[worker] or (self.whole[worker] and playing > 0)

    @invariant()
    def whoever_plays_is_at_work_or_waits_for_the_policy(self) -> None:
        assert self.scheduler.ready_rows == sum(len(self.scheduler.playing(worker)) for worker in self.ready_order)
        for worker in self.workers_in(WorkerState.IDLE, WorkerState.DOWN):
            assert not self.scheduler.playing(worker)

    def teardown(self) -> None:
        """From wherever it stands, plain service brings every episode to its end."""
        for worker in self.workers_in(WorkerState.DOWN):
            self.scheduler.restored(worker)
        for _ in range(10 * (self.submitted + 1)):
            self.scheduler.fill()
            for worker in self.workers_in(WorkerState.RESETTING):
                self.scheduler.reset_done(worker)
            self.scheduler.next_batch()
            for worker in self.workers_in(WorkerState.DECIDING):
                self.scheduler.decided(worker)
            for worker in self.workers_in(WorkerState.STEPPING):
                ended = self.scheduler.playing(worker)[:1]
                self.finished.update(assignment.spec.group_id for assignment in ended)
                self.scheduler.stepped(worker, finished=[assignment.slot for assignment in ended])
        assert self.finished == Counter({group: 1 for group in range(self.submitted)})


SchedulerMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestScheduler = pytest.mark.filterwarnings("ignore")(SchedulerMachine.TestCase)


@given(slots=st.lists(st.integers(1, 6), min_size=2, max_size=5), episodes=st.integers(1, 12))
@settings(deadline=None, max_examples=50)
def test_few_episodes_are_spread_evenly_over_the_workers(slots: list[int], episodes: int) -> None:
    scheduler = Scheduler(slots, whole_resets=[False] * len(slots), max_batch=100)
    scheduler.submit(make_spec(index) for index in range(episodes))
    scheduler.fill()
    loads = [len(scheduler.playing(worker)) for worker in range(len(slots))]
    assert sum(loads) == min(episodes, sum(slots))
    for load, other, room in ((a, b, slots[i]) for i, a in enumerate(loads) for b in loads):
        assert load >= other - 1 or load == room


def test_a_late_decision_for_a_worker_that_died_is_ignored() -> None:
    scheduler = Scheduler([2], whole_resets=[False], max_batch=8)
    scheduler.submit([make_spec(0), make_spec(1)])
    scheduler.fill()
    scheduler.reset_done(0)
    assert scheduler.next_batch() == (0,)
    scheduler.died(0)
    assert scheduler.decided(0) is False
    assert scheduler.queued == 2


@given(slots=st.lists(st.integers(1, 6), min_size=1, max_size=6), max_batch=st.integers(1, 20))
@settings(deadline=None, max_examples=100)
def test_ready_workers_share_a_call_as_long_as_their_rows_fit(slots: list[int], max_batch: int) -> None:
    scheduler = Scheduler(slots, whole_resets=[False] * len(slots), max_batch=max_batch)
    scheduler.submit(make_spec(index) for index in range(sum(slots)))
    scheduler.fill()
    for worker in range(len(slots)):
        scheduler.reset_done(worker)
    served: list[int] = []
    while batch := scheduler.next_batch():
        served += batch
        rows = sum(slots[worker] for worker in batch)
        assert rows <= max_batch or len(batch) == 1
        assert len(served) == len(slots) or rows + slots[len(served)] > max_batch
    assert served == list(range(len(slots)))
