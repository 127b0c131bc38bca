"""Plays episodes on workers with a policy: groups for training, single episodes for evaluation.

Invariant: an episode is a function of the policy's weights, its `EpisodeSpec` and the run's seed; never of timing, of the
slot it was played in or of what shared its batch (up to the policy's own numerics in batches of different size).

The policy is called in the thread that calls `collect` or iterates over `play`; see `conductor` for who does what.
"""

import math
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext

import numpy as np

from vla_train.config import RolloutConfig
from vla_train.envs.observations import is_image
from vla_train.envs.worker import CLOSE_TIMEOUT_S, EnvWorker
from vla_train.envs.workers import close_workers
from vla_train.pipeline.conductor import Conductor, ConductorCounts
from vla_train.pipeline.dynamic_sampling import DynamicSampling
from vla_train.pipeline.gathering import gather
from vla_train.pipeline.group_store import pack_groups, unpack_groups
from vla_train.pipeline.messages import Complete, Decided, Failed, FromConductor, Outbox, PolicyBatch, Stop
from vla_train.pipeline.objectives import CollectGroups, Objective, PlayEpisodes
from vla_train.pipeline.policy_calls import BatchCall, DecidedCall
from vla_train.pipeline.policy_contract import check_output, require_fit
from vla_train.pipeline.rollout_result import RolloutProgress, RolloutResult, RolloutStats
from vla_train.pipeline.sampling_numbers import sampling_numbers
from vla_train.pipeline.timeline import Timeline
from vla_train.policy.base import Policy, PolicyCall
from vla_train.types import IMAGE, INSTRUCTION, EpisodeSpec, Group, Observation, Place, Trajectory, on_host

_LOOK_S = 0.02
"""Seconds between looks for other work while nothing waits to be decided."""
_LOOK_FOR_ROWS_S = 0.005
"""Seconds between looks for rows of a second call while the first is under way."""
_CALLS = 2
"""Calls under way at once, of a policy that decides elsewhere: one is decided while the next is brought together."""


class Rollout:
    """Workers and a policy, kept busy together.

    Args:
        config: How many groups, how batches are made.
        policy: Decides.
        workers: Started ones (`make_workers`); `close` closes them.
        timeline: Takes the spans of workers and policy.
        seed: Seed of the sampling numbers.
    """

    def __init__(
        self, config: RolloutConfig, *, policy: Policy, workers: Sequence[EnvWorker], timeline: Timeline, seed: int
    ) -> None:
        if not workers:
            raise ValueError("a rollout needs at least one worker")
        require_fit(policy, workers[0].description)
        self._config = config
        self._policy = policy
        self._begin_call: Callable[..., PolicyCall] | None = getattr(policy, "begin_act", None)
        self._max_calls = 1 if self._begin_call is None else _CALLS
        self._tensors = bool(getattr(policy, "takes_tensors", False))
        self._read_keys = tuple(key for key in policy.observation_keys if key != INSTRUCTION)
        self._workers = list(workers)
        self._timeline = timeline
        self._seed = seed
        self._conductor = Conductor(
            workers,
            keys=self._read_keys,
            max_batch=config.max_policy_batch,
            max_wait_s=config.max_wait_s,
            timeline=timeline,
            calls=self._max_calls,
        )
        self._sampling = make_sampling(config, slots=sum(worker.description.num_slots for worker in workers))
        self._max_carried = self._sampling.lookahead * config.group_size
        """Episodes that may be finished and not yet handed out between two iterations."""
        self._busy = threading.Lock()
        self._closed = False
        self._reported = ConductorCounts()
        """What happened up to the end of the last iteration."""
        self._conducting: threading.Thread | None = None
        self.breakable: Callable[[], AbstractContextManager[None]] = nullcontext
        """Entered wherever the caller's thread waits or the policy decides: what a signal raises there loses nothing."""

    # --- training

    def collect(
        self,
        prompts: Iterator[tuple[EpisodeSpec, ...]],
        keep: Callable[[Group], bool],
        on_progress: Callable[[RolloutProgress], None] | None = None,
        meanwhile: Callable[[tuple[Group, ...]], bool] | None = None,
        *,
        temperature: float | None = None,
    ) -> RolloutResult:
        """Play groups until `groups_per_iteration` of them carry a signal, or `max_attempts` is used up.

        The groups stay in `state_dict` until `release`, or the next `collect`, says that they were trained on.

        Args:
            prompts: Each item is the episodes of one group; group ids rise. Read only as far as slots are free. If it ends,
                the iteration ends with what there is.
            keep: Whether a finished group carries a signal. Called from another thread, as is `on_progress`.
            on_progress: Told a few times per second how far it is.
            meanwhile: Called in this thread, again and again, while nothing waits to be decided, with the groups of this
                iteration so far: does a piece of other work, and says whether there was any.
            temperature: Of all that is decided from now on, also in episodes that were begun at another; by default that of
                the config.

        Raises:
            WorkerError: A worker failed more often than it may; the cause is in the message.
            ValueError: The policy returned a wrong shape or NaN.
            Exception: What `meanwhile` raises.
        """
        started, before = time.perf_counter(), self._snapshot()
        objective = CollectGroups(self._sampling, prompts, keep, on_progress, self._progress_since(started, before))
        with self._exclusive():
            self._sampling.release()
            work = None if meanwhile is None else lambda: meanwhile(self._sampling.outcome[0])
            for _ in self._play(objective, temperature=temperature or self._config.temperature, meanwhile=work):
                pass
        kept, consumed = self._sampling.outcome
        ended, after = time.perf_counter(), self._snapshot()
        names = [f"env {index}" for index in range(len(self._workers))]
        busy = self._timeline.metrics(since=started, until=ended, resources=["policy", *names])
        successes = [group.success_rate for group in consumed]
        stats = RolloutStats(
            groups_kept=len(kept),
            groups_rejected=len(consumed) - len(kept),
            groups_carried_over=sum(group.finished for group in self._sampling.open_groups),
            episodes_in_flight=self._conductor.scheduler.in_flight,
            success_rate=float(np.mean(successes)) if successes else 0.0,
            episodes=after.episodes - before.episodes,
            decisions=after.decisions - before.decisions,
            env_steps=after.env_steps - before.env_steps,
            policy_batches=after.batches - before.batches,
            duration_s=ended - started,
            policy_s=busy.busy_s["policy"],
            env_s=max(busy.busy_s[name] for name in names),
            overlap_efficiency=busy.overlap_efficiency if after.decisions > before.decisions else math.nan,
            worker_restarts=after.restarts - self._reported.restarts,
            episodes_requeued=after.requeued - self._reported.requeued,
        )
        self._reported = after
        result = RolloutResult(groups=kept, stats=stats)
        self._sampling.begin_next()  # last: an interrupted call has lost nothing
        return result

    def release(self) -> None:
        """Forget the groups that `collect` gave: they were trained on."""
        with self._exclusive():
            self._sampling.release()

    def prefetch(self, prompts: Iterator[tuple[EpisodeSpec, ...]]) -> None:
        """Start resetting free slots for the next `collect`, and return at once: call it before training."""
        with self._exclusive():
            self._conductor.pump(CollectGroups(self._sampling, prompts, lambda group: True, None, None))

    # --- evaluation

    def play(
        self, specs: Iterable[EpisodeSpec], *, temperature: float, film: Collection[EpisodeSpec] = ()
    ) -> Iterator[Trajectory]:
        """Play single episodes and yield each as it ends, in any order, with a film of it where there is a main image.

        At temperature 0 the policy plays greedily; above, what an episode draws depends on its spec and the run's seed alone.
        Specs are read as slots become free. Training episodes that were begun are played from their start again afterwards.

        Args:
            specs: What to play.
            temperature: At which it plays.
            film: Episodes whose films show each action, where the env shows them; those of others show each decision.
        """
        trajectories: list[Trajectory] = []
        with self._exclusive():
            self._conductor.evict()
            try:
                objective = PlayEpisodes(iter(specs), trajectories)
                image = self._workers[0].description.observations.get(IMAGE)
                also = (IMAGE,) if image is not None and is_image(image) else ()
                filmed = (lambda spec: spec in film) if also else None
                yield from self._play(objective, temperature=temperature, also=also, film=filmed, finished=trajectories)
            finally:
                self._conductor.evict()
                self._submit_unplayed()

    # --- the caller's side of the conductor

    def _play(
        self,
        objective: Objective,
        *,
        temperature: float,
        also: tuple[str, ...] = (),
        film: Callable[[EpisodeSpec], bool] | None = None,
        finished: list[Trajectory] | None = None,
        meanwhile: Callable[[], bool] | None = None,
    ) -> Iterator[Trajectory]:
        """`also` and `film` as of `Conductor.run`."""
        outbox: Outbox = queue.SimpleQueue()
        kwargs = {"also": also, "film": film}
        thread = threading.Thread(
            target=self._conductor.run, args=(objective, outbox), kwargs=kwargs, name="rollout", daemon=True
        )
        calls: deque[BatchCall] = deque()
        try:
            thread.start()
            self._conducting = thread
            while True:
                message = self._receive(outbox, calls, meanwhile)
                while finished:
                    yield finished.pop(0)
                if isinstance(message, Complete):
                    return
                if isinstance(message, Failed):
                    raise message.error
                with self.breakable():
                    if message is not None:
                        calls.append(self._begin(message, temperature=temperature))
                        continue
                    decided = self._decided(calls.popleft())
                self._conductor.inbox.put(decided)
        finally:
            self._conductor.inbox.put(Stop(outbox))
            if thread.is_alive():
                thread.join()
            self._conductor.withdraw()

    def _receive(self, outbox: Outbox, calls: deque[BatchCall], meanwhile: Callable[[], bool] | None) -> FromConductor | None:
        """What the conductor says next, or None where the oldest call comes first.

        While nothing waits to be decided, other work is done; a signal waits for a piece of it.
        """
        while calls:
            with self.breakable():
                if len(calls) == self._max_calls or calls[0].ready(_LOOK_FOR_ROWS_S):
                    return None
                try:
                    return outbox.get_nowait()
                except queue.Empty:
                    pass
        while meanwhile is not None:
            worked = outbox.empty() and meanwhile()
            with self.breakable():
                try:
                    return outbox.get(timeout=0 if worked else _LOOK_S)
                except queue.Empty:
                    pass
        with self.breakable():
            return outbox.get()

    def _begin(self, batch: PolicyBatch, *, temperature: float) -> BatchCall:
        """Gather what the rows observe and ask the policy; one that has no `begin_act` has decided then."""
        gathered = time.perf_counter()
        observations = {key: gather(batch, key, tensors=self._tensors) for key in batch.keys}
        uniforms = None
        if temperature > 0:
            count = self._policy.num_uniforms
            uniforms = np.stack([sampling_numbers(self._seed, row.spec, row.decision, count) for row in batch.rows])
        observation = Observation(
            arrays={key: observations[key] for key in self._read_keys},
            instructions=tuple(row.instruction for row in batch.rows),
            places=tuple(
                Place(worker=row.worker, slot=row.slot, episode=row.lease, decision=row.decision) for row in batch.rows
            ),
        )
        began = time.perf_counter()
        self._timeline.add("policy", "preprocess", gathered, began, rows=len(batch.rows))
        parts: list[PolicyCall] = []
        for first in range(0, len(batch.rows), self._config.max_policy_batch):
            rows = slice(first, first + self._config.max_policy_batch)
            numbers = None if uniforms is None else uniforms[rows]
            begin = self._begin_call or self._act
            parts.append(begin(observation.select(rows), uniforms=numbers, temperature=temperature or 1.0))
        return BatchCall(batch=batch, observations=observations, parts=parts, began=began)

    def _act(self, observation: Observation, *, uniforms: np.ndarray | None, temperature: float) -> PolicyCall:
        return DecidedCall(self._policy.act(observation, uniforms=uniforms, temperature=temperature))

    def _decided(self, call: BatchCall) -> Decided:
        """Wait for what the policy decides."""
        outputs = tuple(part.result() for part in call.parts)
        left = len(call.batch.rows)
        for output in outputs:
            rows = min(left, self._config.max_policy_batch)
            check_output(output, rows, self._policy)
            left -= rows
        self._timeline.add("policy", "policy", call.began, time.perf_counter(), rows=len(call.batch.rows))
        recorded = {key: on_host(array) for key, array in call.observations.items()}
        return Decided(batch=call.batch, observations=recorded, outputs=outputs)

    # --- checkpoints

    def state_dict(self) -> dict[str, np.ndarray]:
        """Groups finished or begun but not trained on, as plain arrays (no pickled objects; `np.savez` takes them).

        Begun episodes are kept as specs and played from their start again.
        """
        with self._exclusive():
            return pack_groups(self._sampling.pending())

    @property
    def max_state_bytes(self) -> int:
        """Bytes that `state_dict` may take between two iterations, nearly all of them observations; 0 without a time limit."""
        env = self._workers[0].description
        decisions = math.ceil((env.max_episode_steps or 0) / self._policy.chunk_size)
        return self._max_carried * decisions * sum(env.observations[key].num_bytes for key in self._read_keys)

    def load_state_dict(self, *states: Mapping[str, np.ndarray], is_own: Callable[[int], bool] = lambda group_id: True) -> None:
        """Go on with the groups of one `state_dict` or more; what this rollout holds is dropped.

        Args:
            states: Of rollouts whose groups are distinct.
            is_own: By the id of a group, whether this rollout goes on with it.
        """
        groups = [group for state in states for group in unpack_groups(state) if is_own(group.specs[0].group_id)]
        with self._exclusive():
            self._conductor.evict()
            self._sampling.restore(sorted(groups, key=lambda group: group.specs[0].group_id))
            self._submit_unplayed()

    def _submit_unplayed(self) -> None:
        self._conductor.scheduler.submit(spec for group in self._sampling.open_groups for spec in group.unplayed)

    def close(self) -> None:
        """Close the workers; a `collect` under way in another thread ends with an error."""
        self._closed = True
        if self._conducting is not None:
            self._conductor.inbox.put(Stop())
            self._conducting.join(timeout=CLOSE_TIMEOUT_S)  # first: it might be restarting a worker
        close_workers(self._workers)

    # --- bookkeeping

    def _exclusive(self) -> "_Exclusive":
        if self._closed:
            raise RuntimeError("this rollout is closed")
        return _Exclusive(self._busy)

    def _snapshot(self) -> ConductorCounts:
        counts = self._conductor.counts
        return ConductorCounts(**{name: getattr(counts, name) for name in ConductorCounts.__slots__})

    def _progress_since(self, started: float, before: ConductorCounts) -> Callable[[], RolloutProgress]:
        def progress() -> RolloutProgress:
            counts = self._conductor.counts
            return RolloutProgress(
                kept=self._sampling.kept,
                target=self._config.groups_per_iteration,
                consumed=self._sampling.consumed,
                episodes=counts.episodes - before.episodes,
                decisions=counts.decisions - before.decisions,
                elapsed_s=time.perf_counter() - started,
            )

        return progress


def make_sampling(config: RolloutConfig, *, slots: int) -> DynamicSampling:
    """What a rollout on so many slots plays and keeps."""
    # Groups that wait for an older one to finish hold no slot: beyond one iteration, allow as many as the slots can play.
    lookahead = 0 if config.deterministic else config.groups_per_iteration + math.ceil(slots / config.group_size)
    return DynamicSampling(
        groups_per_iteration=config.groups_per_iteration,
        max_groups=max(1, int(config.max_attempts * config.groups_per_iteration)),
        lookahead=lookahead,
    )


class _Exclusive:
    """One rollout at a time: refuses instead of waiting, since waiting for oneself would never end."""

    def __init__(self, lock: threading.Lock) -> None:
        self._lock = lock

    def __enter__(self) -> None:
        if not self._lock.acquire(blocking=False):
            raise RuntimeError("this rollout is busy: wait for the collect or play that is under way")

    def __exit__(self, *exception: object) -> None:
        self._lock.release()
