"""Keeps workers and policy busy: one thread that owns all state of a rollout and reacts to events.

    caller's thread                      conductor's thread                           workers
    +------------------+  PolicyBatch    +------------------------------------+  Reset, Step   +-----------------+
    | gather the rows  | <-------------- | loop: feed episodes, fill slots,   | -------------> | simulate,       |
    | policy.act       |    (outbox)     |       offer the ready rows,        |                | render          |
    |                  | --------------> |       wait for the next event      | <------------- |                 |
    +------------------+  Decided        +------------------------------------+  Event         +-----------------+
                          (inbox)          produces trajectories for its Objective  (inbox)

* The *caller's thread* produces decisions, consumes batches, waits for a batch, and is unblocked by the conductor (or by the
  end of the rollout). Policies that are bound to a thread (CUDA graphs) therefore stay in the one that called. Of a policy
  that decides elsewhere it begins the next call while the one before is under way.
* The *conductor* produces commands and batches, consumes events and decisions, waits for either, and is unblocked by the
  next deadline at the latest: a worker that stays silent is a fault like one that dies. It never computes for long, so a
  finished slot is refilled while the policy is busy with other rows.
* *Workers* produce events, consume commands, and wait for nothing else.

Faults: the episodes of a worker that failed are queued again, from their beginning, and it is restarted (see `restarts`).
"""

import logging
import math
import queue
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from vla_train.envs.bugs import is_bug
from vla_train.envs.restarts import Restarts
from vla_train.envs.shard import ShardResult
from vla_train.envs.worker import (
    START_TIMEOUT_S,
    Command,
    EnvWorker,
    Event,
    Reset,
    Started,
    Step,
    WorkerError,
    WorkerFault,
)
from vla_train.envs.workers import require_same_env
from vla_train.pipeline.episode_recorder import EpisodeRecorder
from vla_train.pipeline.messages import BatchRow, Complete, Decided, Failed, Outbox, PolicyBatch, Stop
from vla_train.pipeline.objectives import Objective
from vla_train.pipeline.scheduler import Assignment, Scheduler, WorkerState
from vla_train.pipeline.timeline import SpanKind, Timeline
from vla_train.types import EpisodeSpec, select_one

Inbox = queue.SimpleQueue[Event | Decided | Stop]

_logger = logging.getLogger(__name__)


@dataclass(kw_only=True, slots=True)
class ConductorCounts:
    """What happened so far, over the conductor's life."""

    decisions: int = 0
    """Decisions played: chunks."""
    env_steps: int = 0
    batches: int = 0
    """Policy calls offered."""
    episodes: int = 0
    restarts: int = 0
    requeued: int = 0
    """Episodes that had to start again because of a fault."""


class Conductor:
    """Drives workers through a scheduler; see the module's docstring.

    Args:
        workers: Started workers; the conductor restarts them, their maker closes them.
        keys: Of the observation: what workers bring along and trajectories keep, where `run` does not say otherwise.
        max_batch: Most rows of one policy batch.
        max_wait_s: How long ready rows wait for more, while more are on their way; if they do, all share the call.
        timeline: Takes the spans of the workers.
        calls: Most policy calls that are under way at once. One that is not the first holds all rows that it could hold:
            as long as waiting would make it larger, it waits.
        clock: Seconds, by which deadlines and `max_wait_s` are meant.
        inbox: Its `get` waits in the clock's seconds; None makes one. Both are given by who simulates a cluster.
    """

    def __init__(
        self,
        workers: Sequence[EnvWorker],
        *,
        keys: tuple[str, ...],
        max_batch: int,
        max_wait_s: float,
        timeline: Timeline,
        calls: int = 1,
        clock: Callable[[], float] = time.monotonic,
        inbox: Inbox | None = None,
    ) -> None:
        self._workers = list(workers)
        self._config = workers[0].config
        self._max_batch = max_batch
        self._max_wait_s = max_wait_s
        self._timeline = timeline
        self._calls = calls
        self._clock = clock
        self._neutral_action = np.clip(0.0, workers[0].description.action_low, workers[0].description.action_high)
        self.scheduler = Scheduler(
            [worker.description.num_slots for worker in workers],
            whole_resets=[worker.description.whole_resets for worker in workers],
            max_batch=max_batch,
        )
        self.counts = ConductorCounts()
        self.inbox: Inbox = inbox or queue.SimpleQueue()
        self._results: list[ShardResult | None] = [None] * len(workers)
        self._recorders: dict[int, EpisodeRecorder] = {}  # by lease
        self._deadlines: dict[int, float] = {}  # of commands and starts under way, by worker
        self._first_deadline = math.inf
        """None of these is earlier."""
        self._restarts = [Restarts(most=self._config.max_restarts, window=worker.description.num_slots) for worker in workers]
        self._told_of: set[str] = set()
        """Errors whose traceback was logged."""
        self._outstanding: list[PolicyBatch] = []
        """Offered and not yet decided, oldest first."""
        self._keys = self._usual_keys = keys
        self._film: Callable[[EpisodeSpec], bool] | None = None
        self._ready_since = 0.0
        self._failure: BaseException | None = None
        for worker in workers:
            worker.connect(self.inbox.put)

    # --- the loop

    def run(
        self,
        objective: Objective,
        outbox: Outbox,
        *,
        also: tuple[str, ...] = (),
        film: Callable[[EpisodeSpec], bool] | None = None,
    ) -> None:
        """Play until the objective is complete, `Stop` is asked for, or a worker fails too often. Never raises.

        Args:
            also: Keys of the observation to keep besides the usual ones, in this run.
            film: Whether all frames of an episode are kept, or one per decision and the last; None keeps none.
        """
        self._film = film
        self._keys = tuple(dict.fromkeys((*self._usual_keys, *also)))
        try:
            if self._failure is not None:
                raise self._failure
            while True:
                if not objective.complete:
                    self.pump(objective)
                if not objective.complete:
                    self._offer(outbox)
                elif not self._outstanding:
                    outbox.put(Complete())
                    return
                event = self._next_event()
                if isinstance(event, Stop):
                    if event.outbox is None or event.outbox is outbox:
                        outbox.put(Failed(RuntimeError("the rollout was closed")))
                        return
                elif event is not None:
                    self._handle(event, objective, outbox)
        except BaseException as error:  # the fault boundary of a rollout: whatever went wrong is the caller's to see
            self._failure = error
            outbox.put(Failed(error))
        finally:
            self._keys, self._film = self._usual_keys, None

    def pump(self, objective: Objective) -> None:
        """Queue more episodes and start resetting free slots, without waiting."""
        wanted = self.scheduler.wanted
        if wanted:
            self.scheduler.submit(objective.feed(wanted))
        for worker, assignments in self.scheduler.fill().items():
            for assignment in assignments:
                filmed = None if self._film is None else self._film(assignment.spec)
                self._recorders[assignment.lease] = EpisodeRecorder(spec=assignment.spec, instruction="", filmed=filmed)
            slots, specs = tuple(a.slot for a in assignments), tuple(a.spec for a in assignments)
            self._send(worker, Reset(slots=slots, specs=specs, keys=self._keys))

    def _send(self, worker: int, command: Command) -> None:
        self._expect(worker, within_s=self._config.step_timeout_s)
        self._workers[worker].send(command)

    def _expect(self, worker: int, *, within_s: float) -> None:
        """The worker is silent for too long if it has not answered within so many seconds."""
        self._deadlines[worker] = self._clock() + within_s
        self._first_deadline = min(self._first_deadline, self._deadlines[worker])

    def _offer(self, outbox: Outbox) -> None:
        if len(self._outstanding) >= self._calls or self.scheduler.ready_rows == 0:
            return
        more_to_come = self.scheduler.stepping > 0 and self.scheduler.ready_rows < self._max_batch
        if more_to_come and (self._outstanding or self._clock() < self._ready_since + self._max_wait_s):
            return
        batch = self._batch(self.scheduler.next_batch())
        self._outstanding.append(batch)
        self.counts.batches += 1
        outbox.put(batch)

    def _batch(self, workers: tuple[int, ...]) -> PolicyBatch:
        rows = []
        results: dict[int, ShardResult] = {}
        for worker in workers:
            result = self._results[worker]
            assert result is not None
            results[worker] = result
            for assignment in self.scheduler.playing(worker):
                recorder = self._recorders[assignment.lease]
                rows.append(
                    BatchRow(
                        worker=worker,
                        slot=assignment.slot,
                        lease=assignment.lease,
                        spec=assignment.spec,
                        decision=recorder.decisions,
                        instruction=recorder.instruction,
                    )
                )
        return PolicyBatch(rows=tuple(rows), keys=self._keys, workers=workers, results=results)

    def _next_event(self) -> Event | Decided | Stop | None:
        """The next event, or None when a deadline has passed first; then the silent workers have been dealt with."""
        now = self._clock()
        if self._first_deadline <= now:  # looking through all of them is rare: most are met long before
            self._first_deadline = min(self._deadlines.values(), default=math.inf)
        until = min(self._first_deadline, now + START_TIMEOUT_S)
        if self._max_wait_s > 0 and not self._outstanding and self.scheduler.ready_rows > 0:
            until = min(until, max(now, self._ready_since + self._max_wait_s))
        try:
            return self.inbox.get(timeout=max(0.0, until - now))
        except queue.Empty:
            pass
        now = self._clock()
        for worker in [worker for worker, deadline in self._deadlines.items() if deadline <= now]:
            silent_s = START_TIMEOUT_S if self.scheduler.state(worker) is WorkerState.DOWN else self._config.step_timeout_s
            self._restart(worker, TimeoutError(f"no answer for {silent_s:g} s"))
        return None

    # --- events

    def _handle(self, event: Event | Decided, objective: Objective, outbox: Outbox) -> None:
        if isinstance(event, Decided):
            self._dispatch(event, objective, outbox)
            objective.advanced()
            return
        if event.incarnation != self._workers[event.worker].incarnation:
            return  # from one that was given up
        self._deadlines.pop(event.worker, None)
        content = event.content
        if isinstance(content, WorkerFault):
            self._restart(event.worker, content.error)
        elif isinstance(content, Started):
            require_same_env([worker.description for worker in self._workers])
            self.scheduler.restored(event.worker)
        else:
            self._record(event.worker, content, objective)

    def _dispatch(self, decided: Decided, objective: Objective, outbox: Outbox) -> None:
        """Send each worker its chunk, unless it died or lost its episodes meanwhile; the policy gets its next rows first."""
        batch = decided.batch
        if not any(batch is other for other in self._outstanding):
            return
        self._outstanding = [other for other in self._outstanding if other is not batch]
        # A worker that died meanwhile plays others by now, which the next call may be deciding.
        held = {row.worker for row in batch.rows if row.lease in self._recorders}
        stepping = {worker for worker in batch.workers if worker in held and self.scheduler.decided(worker)}
        if not objective.complete:
            self._offer(outbox)
        decisions = [(output, line) for output in decided.outputs for line in range(len(output.actions))]
        description, chunk_size = self._workers[0].description, decided.outputs[0].actions.shape[1]
        rows_of: dict[int, list[int]] = {worker: [] for worker in batch.workers}
        for index, row in enumerate(batch.rows):
            rows_of[row.worker].append(index)
        for worker, indices in rows_of.items():
            if worker not in stepping:
                continue
            num_slots = self._workers[worker].description.num_slots
            actions = np.empty((num_slots, chunk_size, description.action_dim), np.float32)
            actions[:] = self._neutral_action
            active = np.zeros(num_slots, bool)
            film: dict[int, bool] = {}
            for index in indices:
                row, (output, line) = batch.rows[index], decisions[index]
                self._recorders[row.lease].decide(
                    select_one(decided.observations, index), select_one(output.decision, line), output.policy_version
                )
                actions[row.slot], active[row.slot] = output.actions[line], True
                if (filmed := self._recorders[row.lease].filmed) is not None:
                    film[row.slot] = filmed
            self._send(worker, Step(actions=actions, active=active, keys=self._keys, film=film))

    def _record(self, worker: int, result: ShardResult, objective: Objective) -> None:
        self._results[worker] = result
        state = self.scheduler.state(worker)
        playing = self.scheduler.playing(worker)
        kind: SpanKind = "reset" if state is WorkerState.RESETTING else "simulate"
        self._timeline.add(f"env {worker}", kind, result.began, result.ended, rows=len(playing))
        if result.drew is not None:
            self._timeline.add(f"env {worker}", "render", *result.drew, rows=len(playing))
        if not self.scheduler.ready_rows:
            self._ready_since = self._clock()
        if state is WorkerState.RESETTING:
            for assignment in playing:
                recorder = self._recorders[assignment.lease]
                if recorder.decisions == 0:
                    recorder.instruction = result.instructions[assignment.slot]
            self.scheduler.reset_done(worker)
            return
        ended = []
        for assignment in playing:
            slot = assignment.slot
            self._recorders[assignment.lease].play(
                int(result.num_steps[slot]),
                float(result.rewards[slot]),
                succeeded=bool(result.succeeded[slot]),
                frames=result.frames.get(slot),
            )
            self.counts.decisions += 1
            self.counts.env_steps += int(result.num_steps[slot])
            if result.terminated[slot] or result.truncated[slot]:
                ended.append(assignment)
        self.scheduler.stepped(worker, finished=[assignment.slot for assignment in ended])
        for assignment in ended:
            self._restarts[worker].worked()
            self._finish(assignment, result, objective)

    def _finish(self, assignment: Assignment, result: ShardResult, objective: Objective) -> None:
        slot = assignment.slot
        trajectory = self._recorders.pop(assignment.lease).finish(
            terminated=bool(result.terminated[slot]),
            truncated=bool(result.truncated[slot]),
            config=self._config,
        )
        self.counts.episodes += 1
        objective.finished(trajectory)

    # --- faults

    def _restart(self, worker: int, error: BaseException) -> None:
        """Queue the worker's episodes again and start it anew.

        Raises:
            WorkerError: It has been restarted as often as it may be.
        """
        self._deadlines.pop(worker, None)
        self._workers[worker].kill()
        for assignment in self.scheduler.playing(worker):
            del self._recorders[assignment.lease]
        requeued = self.scheduler.died(worker)
        self._results[worker] = None
        self.counts.requeued += len(requeued)
        restarts, cause = self._restarts[worker], f"{type(error).__name__}: {error}"
        if restarts.exhausted:
            raise WorkerError(f"worker {worker} ({self._config.id}) failed after {len(restarts)} restarts: {cause}") from error
        restarts.restarted()
        self.counts.restarts += 1
        _logger.warning(
            "worker %d (%s) failed (%s): restart %d of %d, %d episodes start again",
            worker,
            self._config.id,
            cause,
            len(restarts),
            self._config.max_restarts,
            len(requeued),
            exc_info=error if is_bug(error) and cause not in self._told_of else None,
        )
        self._told_of.add(cause)
        self._start(worker)

    def _start(self, worker: int) -> None:
        """Start a worker; where that fails at once (no memory, no process, no Ray), it is one more fault of this worker."""
        self._expect(worker, within_s=START_TIMEOUT_S)
        try:
            self._workers[worker].start()
        except Exception as error:
            incarnation = self._workers[worker].incarnation
            self.inbox.put(Event(worker=worker, incarnation=incarnation, content=WorkerFault(error=error)))

    # --- between runs, from the caller's thread

    def withdraw(self) -> None:
        """Forget batches that the policy will not answer: their rows are ready again."""
        for batch in self._outstanding:
            for worker in batch.workers:
                self.scheduler.withdraw(worker)
        self._outstanding = []

    def evict(self) -> None:
        """Take all episodes off the slots and out of the queue."""
        self.withdraw()
        self.scheduler.evict_all()
        self._recorders.clear()
