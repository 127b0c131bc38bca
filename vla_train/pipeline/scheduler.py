"""Which slot plays which episode, and which workers the policy serves next: a pure state machine.

It has no threads, no clock and does no work itself; the rollout tells it what happened and asks what to do.

    queue --fill()--> RESETTING --reset_done()--> READY --next_batch()--> DECIDING --decided()--> STEPPING --stepped()--+
      ^                                            ^                                                                     |
      |                                            +-------------- slots still playing, none refilled -------------------+
      +-- died(), evict_all(): episodes go back    +-- fill() gives freed slots the next episodes first: RESETTING ------+

Invariants (property-tested): every submitted episode is finished exactly once; after `fill` no slot stays free while work
waits, unless its worker is in the middle of a command, is down, or can only be reset as a whole; workers are served
in the order in which they became ready.
"""

from collections import deque
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
        self._ready: deque[int] = deque()
        self._leases = 0

    # --- what is going on

    @property
    def queued(self) -> int:
        """Episodes that wait for a slot."""
        return len(self._queue)

    @property
    def in_flight(self) -> int:
        """Episodes that are being played."""
        return sum(len(worker.playing) for worker in self._workers)

    @property
    def wanted(self) -> int:
        """How many more episodes the free slots could take than are queued (never negative)."""
        free = sum(len(worker.slots) - len(worker.playing) for worker in self._workers)
        return max(0, free - len(self._queue))

    @property
    def stepping(self) -> int:
        """Workers that will have observations for the policy without its help."""
        return sum(worker.state in (WorkerState.STEPPING, WorkerState.RESETTING) for worker in self._workers)

    @property
    def ready_rows(self) -> int:
        """Rows that wait for the policy."""
        return sum(len(self._workers[worker].playing) for worker in self._ready)

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
        open_workers = {
            index: [slot for slot, assignment in enumerate(worker.slots) if assignment is None]
            for index, worker in enumerate(self._workers)
            if worker.state in (WorkerState.IDLE, WorkerState.READY) and not (worker.whole_resets and worker.playing)
        }
        load = {index: len(self._workers[index].slots) - len(free) for index, free in open_workers.items()}
        while self._queue:
            candidates = [index for index, free in open_workers.items() if free]
            if not candidates:
                break
            index = min(candidates, key=lambda candidate: (load[candidate], candidate))
            assignment = Assignment(slot=open_workers[index].pop(0), spec=self._queue.popleft(), lease=self._leases)
            self._leases += 1
            load[index] += 1
            self._workers[index].slots[assignment.slot] = assignment
            given.setdefault(index, []).append(assignment)
        for index in given:
            if self._workers[index].state is WorkerState.READY:
                self._ready.remove(index)
            self._workers[index].state = WorkerState.RESETTING
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
            rows += len(self._workers[self._ready[0]].playing)
            if batch and rows > self._max_batch:
                break
            worker = self._ready.popleft()
            self._workers[worker].state = WorkerState.DECIDING
            batch.append(worker)
        return tuple(batch)

    def decided(self, worker: int) -> bool:
        """The policy has decided; False if nothing is left to step (its episodes were taken away meanwhile)."""
        if self._workers[worker].state is not WorkerState.DECIDING:
            return False
        if not self._workers[worker].playing:
            self._end_command(worker)
            return False
        self._workers[worker].state = WorkerState.STEPPING
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
        self._end_command(worker)

    def _end_command(self, worker: int) -> None:
        if self._workers[worker].playing:
            self._workers[worker].state = WorkerState.READY
            self._ready.append(worker)
        else:
            self._workers[worker].state = WorkerState.IDLE

    # --- episodes are taken away

    def died(self, worker: int) -> list[EpisodeSpec]:
        """The worker died: its episodes go back to the front of the queue, and it is DOWN until `restored`."""
        if worker in self._ready:
            self._ready.remove(worker)
        specs = self._take_back([worker])
        self._workers[worker].state = WorkerState.DOWN
        return specs

    def restored(self, worker: int) -> None:
        """The worker is up again, with all slots free."""
        assert self._workers[worker].state is WorkerState.DOWN, self._workers[worker].state
        self._workers[worker].state = WorkerState.IDLE

    def evict_all(self) -> list[EpisodeSpec]:
        """Take back everything, queued or playing, in the order of its assignment; commands under way end as usual."""
        self._take_back(range(len(self._workers)))
        specs = list(self._queue)
        self._queue.clear()
        for worker in self._ready:
            self._workers[worker].state = WorkerState.IDLE
        self._ready.clear()
        return specs

    def _take_back(self, workers: Iterable[int]) -> list[EpisodeSpec]:
        taken: list[Assignment] = []
        for index in workers:
            worker = self._workers[index]
            taken += worker.playing
            worker.slots = [None] * len(worker.slots)
        specs = [assignment.spec for assignment in sorted(taken, key=lambda assignment: assignment.lease)]
        self._queue.extendleft(reversed(specs))
        return specs
