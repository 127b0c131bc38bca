"""Which attempts at a task there are, and which of them are still to be made.

Invariant: an attempt is a pure function of (seed, task, number), and the attempts that are made, those up to the one that
completes the task, do not depend on how many are under way at once. Results are taken in one order: task by task, by number.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

import numpy as np

from vla_train.demonstrations.config import CollectConfig
from vla_train.pipeline.episodes import split_initial_states
from vla_train.types import EpisodeSpec

_SEEDS = 1 << 30
"""Seeds of attempts lie below: evaluation uses others."""

_Result = TypeVar("_Result")


@dataclass(frozen=True, slots=True)
class Attempt:
    """One try at a task."""

    number: int
    """From 0, within the task."""
    spec: EpisodeSpec
    """`seed` seeds the env's reset where it stores no initial states, and the expert."""


def initial_states(task_id: int, num_states: int | None, config: CollectConfig) -> np.ndarray:
    """Ids of the initial states that may be demonstrated; [-1] for an env that stores none.

    Raises:
        ValueError: The split leaves none.
    """
    if num_states is None:
        return np.array([-1])
    train, held_out = split_initial_states(
        task_id, num_states, train_fraction=config.train_fraction, split_seed=config.split_seed
    )
    states = {"train": train, "held-out": held_out, "all": np.arange(num_states)}[config.initial_states]
    if not len(states):
        raise ValueError(f"no {config.initial_states} initial state is left for task {task_id}: change train_fraction")
    return states


def attempt(task_id: int, number: int, *, states: np.ndarray, seed: int) -> Attempt:
    """The attempt of that number: each initial state comes once, then each again, in a fresh order each time."""
    passed, index = divmod(number, len(states))
    order = np.random.default_rng([seed, 3, task_id, passed]).permutation(len(states))
    drawn = int(np.random.default_rng([seed, 4, task_id, number]).integers(_SEEDS))
    return Attempt(
        number,
        EpisodeSpec(group_id=number, sample_id=0, task_id=task_id, init_state_id=int(states[order[index]]), seed=drawn),
    )


@dataclass
class TaskProgress(Generic[_Result]):
    """How far one task is."""

    task_id: int
    wanted: int
    """Successes."""
    max_attempts: int
    successes: int = 0
    failures: int = 0
    taken: int = 0
    """Attempts whose results were taken: those with numbers below."""
    begun: int = 0
    """Attempts that were begun: those with numbers below."""
    waiting: dict[int, tuple[_Result, bool]] = field(default_factory=dict)
    """Results, and whether they succeeded, whose turn has not come."""

    @property
    def complete(self) -> bool:
        """Whether nothing more of this task will be taken."""
        return self.taken == self.begun and not self.needs_attempt

    @property
    def needs_attempt(self) -> bool:
        """Whether there would be too few successes even if all attempts under way succeeded."""
        known_failures = self.failures + sum(not succeeded for _, succeeded in self.waiting.values())
        return self.begun - known_failures < self.wanted and self.begun < self.max_attempts


class Attempts(Generic[_Result]):
    """Hands out attempts and takes their results, in any order; gives results back in theirs.

    Args:
        tasks: Initial states by task, in the order of the dataset.
        config: Seed and bounds.
        done: Number and success of the attempts that the dataset holds, by task. Where it holds no failures, those before
            the last one that are missing have failed.
    """

    def __init__(
        self,
        tasks: Mapping[int, np.ndarray],
        config: CollectConfig,
        *,
        done: Mapping[int, Sequence[tuple[int, bool]]],
    ) -> None:
        self._states = tasks
        self._seed = config.seed
        self.tasks: tuple[TaskProgress[_Result], ...] = tuple(
            _progress(task_id, done.get(task_id, ()), config) for task_id in tasks
        )

    def begin(self) -> Attempt | None:
        """The next attempt to make; None while there is none, though results under way may change that."""
        for task in self.tasks:
            if task.needs_attempt:
                task.begun += 1
                return attempt(task.task_id, task.begun - 1, states=self._states[task.task_id], seed=self._seed)
        return None

    def finish(self, made: Attempt, result: _Result, *, succeeded: bool) -> Iterator[_Result]:
        """Take the result of an attempt; yields those whose turn has come."""
        by_id = {task.task_id: task for task in self.tasks}
        by_id[made.spec.task_id].waiting[made.number] = result, succeeded
        for task in self.tasks:
            while task.taken in task.waiting:
                first, good = task.waiting.pop(task.taken)
                task.taken += 1
                task.successes += good
                task.failures += not good
                yield first
            if not task.complete:
                return


def _progress(task_id: int, done: Sequence[tuple[int, bool]], config: CollectConfig) -> TaskProgress:
    taken = max((number for number, _ in done), default=-1) + 1
    successes = sum(succeeded for _, succeeded in done)
    return TaskProgress(
        task_id=task_id,
        wanted=config.episodes_per_task,
        max_attempts=config.max_attempts_per_task,
        successes=successes,
        failures=taken - successes,
        taken=taken,
        begun=taken,
    )
