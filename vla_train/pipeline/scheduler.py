"""Which slot plays which episode, and which workers the policy serves next: a pure state machine.

It has no threads, no clock and does no work itself; the rollout tells it what happened and asks what to do.

    queue --fill()--> RESETTING --reset_done()--> READY --next_batch()--> DECIDING --decided()--> STEPPING --stepped()--+
      ^                                            ^                                                                     |
      |                                            +-------------- slots still playing, none refilled -------------------+
      +-- died(), evict_all(): episodes go back    +-- fill() gives freed slots the next episodes first: RESETTING ------+

Invariants (property-tested): every submitted episode is finished exactly once; after `fill` no slot stays free while work
waits, unless its worker is in the middle of a command, is down, or can only be reset as a whole; workers are served
in the order in which they became ready. No call looks at workers that it does not concern, so that a message costs the same
however many there are; `_settle` keeps the counts that make this so.
"""

import heapq
from collections import OrderedDict, deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import Enum

from vla_train.types import EpisodeSpec


class WorkerState(Enum):
    """What a worker is doing."""

    IDLE = "idle"
    """No slot is playing."""
    RESETTING = "resetting"
    READY = "ready"
    """Observations wait for the policy."""
    DECIDING = "deciding"
    """Its observations are with the policy."""
    STEPPING = "stepping"
    DOWN = "down"
    """Died; not restarted yet."""


_AT_WORK = (WorkerState.STEPPING, WorkerState.RESETTING)
_OPEN = (WorkerState.IDLE, WorkerState.READY)


@dataclass(frozen=True, kw_only=True, slots=True)
class Assignment:
    """An episode given to a slot."""

    slot: int
    spec: EpisodeSpec
    lease: int
    """Unique number of this assignment: results that come back under another lease belong to an episode taken away."""


@dataclass(slots=True)
class _Worker:
    slots: list[Assignment | None]
    whole_resets: bool
    state: WorkerState = WorkerState.IDLE

    @property
    def playing(self) -> list[Assignment]:
        return [assignment for assignment in self.slots if assignment is not None]


class Scheduler:
    """Slots of several workers ("workers"), a queue of episodes, and the order in which the policy serves.

    Args:
        slots: Number of slots of each worker.
        whole_resets: For each worker, whether its slots can only be reset all at once (envs without `reset_mask`): it takes
            new episodes only when all of its slots are free.
        max_batch: Most rows of one policy batch; a single worker with more rows is still served, alone.
    """

    def __init__(self, slots: Sequence[int], *, whole_resets: Sequence[bool], max_batch: int) -> None:
        self._workers = [
            _Worker(slots=[None] * count, whole_resets=whole) for count, whole in zip(slots, whole_resets, strict=True)
        ]
        self._max_batch = max_batch
        self._queue: deque[EpisodeSpec] = deque()
        self._ready: OrderedDict[int, int] = OrderedDict()
        """Rows of each ready worker, longest-waiting first."""
        self._ready_rows = 0
        self._open = set(range(len(slots)))
        """Workers that could take an episode now."""
        self._free = sum(slots)
        self._in_flight = 0
        self._stepping = 0
        self._leases = 0

    # --- what is going on

    @property
    def queued(self) -> int:
        """Episodes that wait for a slot."""
        return len(self._queue)

    @property
    def in_flight(self) -> int:
        """Episodes that are being played."""
        return self._in_flight

    @property
    def wanted(self) -> int:
        """How many more episodes the free slots could take than are queued (never negative)."""
        return max(0, self._free - len(self._queue))

    @property
    def stepping(self) -> int:
        """Workers that will have observations for the policy without its help."""
        return self._stepping

    @property
    def ready_rows(self) -> int:
        """Rows that wait for the policy."""
        return self._ready_rows

    def state(self, worker: int) -> WorkerState:
        return self._workers[worker].state

    def playing(self, worker: int) -> list[Assignment]:
        """Assignments of the worker's occupied slots, by slot."""
        return self._workers[worker].playing

    # --- work comes in

    def submit(self, specs: Iterable[EpisodeSpec]) -> None:
        """Queue episodes behind those that wait already."""
        self._queue.extend(specs)

    def fill(self) -> dict[int, list[Assignment]]:
        """Give queued episodes, in order, to free slots, and say what to reset; these workers are then RESETTING.

        While there are fewer episodes than slots they are spread evenly, so that the workers keep overlapping.
        """
        given: dict[int, list[Assignment]] = {}
        if not self._queue or not self._open:
            return given
        free = {index: [slot for slot, taken in enumerate(self._workers[index].slots) if taken is None] for index in self._open}
        least_loaded = [(len(self._workers[index].slots) - len(slots), index) for index, slots in free.items()]
        heapq.heapify(least_loaded)
        while self._queue and least_loaded:
            load, index = heapq.heappop(least_loaded)
            assignment = Assignment(slot=free[index].pop(0), spec=self._queue.popleft(), lease=self._leases)
            self._leases += 1
            self._workers[index].slots[assignment.slot] = assignment
            given.setdefault(index, []).append(assignment)
            if free[index]:
                heapq.heappush(least_loaded, (load + 1, index))
        for index, assignments in given.items():
            self._count_playing(len(assignments))
            self._settle(index, WorkerState.RESETTING)
        return given

    # --- the cycle of one worker

    def reset_done(self, worker: int) -> None:
        """The slots named by `fill` have been reset."""
        assert self._workers[worker].state is WorkerState.RESETTING, self._workers[worker].state
        self._end_command(worker)

    def next_batch(self) -> tuple[int, ...]:
        """Ready workers for one policy call, longest-waiting first, within `max_batch` rows; they are then DECIDING."""
        batch: list[int] = []
        rows = 0
        while self._ready:
            worker, more = next(iter(self._ready.items()))
            rows += more
            if batch and rows > self._max_batch:
                break
            self._settle(worker, WorkerState.DECIDING)
            batch.append(worker)
        return tuple(batch)

    def decided(self, worker: int) -> bool:
        """The policy has decided; False if nothing is left to step (its episodes were taken away meanwhile)."""
        if self._workers[worker].state is not WorkerState.DECIDING:
            return False
        if not self._workers[worker].playing:
            self._end_command(worker)
            return False
        self._settle(worker, WorkerState.STEPPING)
        return True

    def withdraw(self, worker: int) -> None:
        """The policy will not decide after all: the worker is ready again."""
        if self._workers[worker].state is WorkerState.DECIDING:
            self._end_command(worker)

    def stepped(self, worker: int, *, finished: Iterable[int]) -> None:
        """The worker has played one chunk; the episodes in the slots `finished` have ended."""
        assert self._workers[worker].state is WorkerState.STEPPING, self._workers[worker].state
        for slot in finished:
            assert self._workers[worker].slots[slot] is not None, f"slot {slot} of worker {worker} finished twice"
            self._workers[worker].slots[slot] = None
            self._count_playing(-1)
        self._end_command(worker)

    def _end_command(self, worker: int) -> None:
        self._settle(worker, WorkerState.READY if self._workers[worker].playing else WorkerState.IDLE)

    # --- counts

    def _count_playing(self, more: int) -> None:
        self._in_flight += more
        self._free -= more

    def _settle(self, index: int, state: WorkerState) -> None:
        """The worker is in a state, with the slots that it has now; one that is ready waits behind all others."""
        worker = self._workers[index]
        self._stepping += (state in _AT_WORK) - (worker.state in _AT_WORK)
        worker.state = state
        playing = len(worker.playing)
        self._ready_rows -= self._ready.pop(index, 0)
        if state is WorkerState.READY:
            self._ready[index] = playing
            self._ready_rows += playing
        room = playing == 0 if worker.whole_resets else playing < len(worker.slots)
        if room and state in _OPEN:
            self._open.add(index)
        else:
            self._open.discard(index)

    # --- episodes are taken away

    def died(self, worker: int) -> list[EpisodeSpec]:
        """The worker died: its episodes go back to the front of the queue, and it is DOWN until `restored`."""
        specs = self._take_back([worker])
        self._settle(worker, WorkerState.DOWN)
        return specs

    def restored(self, worker: int) -> None:
        """The worker is up again, with all slots free."""
        assert self._workers[worker].state is WorkerState.DOWN, self._workers[worker].state
        self._settle(worker, WorkerState.IDLE)

    def evict_all(self) -> list[EpisodeSpec]:
        """Take back everything, queued or playing, in the order of its assignment; commands under way end as usual."""
        self._take_back(range(len(self._workers)))
        specs = list(self._queue)
        self._queue.clear()
        for index, worker in enumerate(self._workers):
            self._settle(index, WorkerState.IDLE if worker.state is WorkerState.READY else worker.state)
        return specs

    def _take_back(self, workers: Iterable[int]) -> list[EpisodeSpec]:
        taken: list[Assignment] = []
        for index in workers:
            worker = self._workers[index]
            taken += worker.playing
            worker.slots = [None] * len(worker.slots)
        self._count_playing(-len(taken))
        specs = [assignment.spec for assignment in sorted(taken, key=lambda assignment: assignment.lease)]
        self._queue.extendleft(reversed(specs))
        return specs
