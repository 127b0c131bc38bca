"""The measurements: the policy alone, a rollout, and the update, each in chunks (decisions of one slot) per second.

Each is warmed up first: calls are compiled, scenes loaded, every slot is playing.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from vla_train.bench.material import make_groups, repeated
from vla_train.bench.policies import MeteredPolicy, TimeUp
from vla_train.config import EnvConfig, TrainConfig
from vla_train.pipeline.rollout import Rollout
from vla_train.policy.base import Policy
from vla_train.trainer.group_trainer import GroupTrainer
from vla_train.types import Arrays, EpisodeSpec, Observation

_WARM_UP_CALLS = 3
"""A policy that replays CUDA graphs has made them by then."""
_MOST_ROWS = 2048
"""Of an update that is measured: their pictures take less than half a gigabyte."""


def batch_sizes(env: EnvConfig, max_policy_batch: int) -> list[int]:
    """Rows that a policy call may have: those of 1, 2, 4, ... and of all workers, as far as one call takes them."""
    counts = {min(1 << power, env.num_workers) for power in range(env.num_workers.bit_length() + 1)}
    whole = {count * env.envs_per_worker for count in counts if count * env.envs_per_worker <= max_policy_batch}
    most = max(1, max_policy_batch // env.envs_per_worker) * env.envs_per_worker
    return sorted(whole | {min(most, max_policy_batch, env.num_workers * env.envs_per_worker)})


class PolicyAlone:
    """Calls of a policy, one after another, on what envs observe.

    Args:
        policy: Decides.
        observation: At least one row; they are repeated where a batch has more.
        temperature: Of sampling.
    """

    def __init__(self, policy: Policy, observation: Observation, *, temperature: float) -> None:
        self._policy = policy
        self._observation = observation
        self._temperature = temperature
        self._random = np.random.default_rng(0)

    def warm_up(self, rows: int) -> None:
        """Let it compile what batches of this size need: instructions of each length alone, and among others."""
        seen = repeated(self._observation, rows)
        for text in dict.fromkeys(seen.instructions):
            self._act(replace(seen, instructions=(text,) * rows))
        for _ in range(_WARM_UP_CALLS):
            self._act(seen)

    def chunks_per_s(self, rows: int, *, seconds: float) -> float:
        """Decisions per second in batches of `rows`: two calls or more."""
        seen = repeated(self._observation, rows)
        calls, start = 0, time.perf_counter()
        while calls < 2 or time.perf_counter() - start < seconds:
            self._act(seen)
            calls += 1
        return calls * rows / (time.perf_counter() - start)

    def decide(self, *, max_rows: int) -> Arrays:
        """What it decides for all rows of the observation, in batches of at most `max_rows`."""
        parts = [
            self._act(self._observation.select(slice(first, first + max_rows)))
            for first in range(0, len(self._observation), max_rows)
        ]
        return {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}

    def _act(self, seen: Observation) -> Arrays:
        uniforms = self._random.random((len(seen), self._policy.num_uniforms), np.float32)
        return self._policy.act(seen, uniforms=uniforms, temperature=self._temperature).decision


@dataclass(frozen=True, kw_only=True, slots=True)
class Played:
    """What a rollout achieved."""

    chunks_per_s: float
    mean_decisions: float | None
    """Of the episodes that ended; None where too few did."""


def play(
    rollout: Rollout,
    metered: MeteredPolicy,
    policy: Policy,
    specs: Iterator[EpisodeSpec],
    *,
    slots: int,
    temperature: float,
    seconds: float,
) -> Played:
    """Chunks per second of workers and a policy, after every slot has played twice.

    Args:
        rollout: Of the workers and `metered`.
        metered: Ends the rollout.
        policy: What decides; `RandomPolicy` measures the envs alone.
        specs: Endless.
        slots: Of all workers.
        temperature: Of sampling.
        seconds: Length of the measurement; it is longer until each slot has played on average.
    """
    metered.begin(policy, warm_up_rows=2 * slots, least_rows=slots, seconds=seconds)
    lengths: list[int] = []
    try:
        for trajectory in rollout.play(specs, temperature=temperature):
            lengths.append(len(trajectory))
    except TimeUp:
        pass
    enough = len(lengths) >= slots  # fewer would be the short ones
    return Played(chunks_per_s=metered.chunks_per_s, mean_decisions=float(np.mean(lengths)) if enough else None)


def update_rate(
    trainer: GroupTrainer,
    observation: Observation,
    decision: Arrays,
    config: TrainConfig,
    *,
    episode_decisions: int,
    seconds: float,
) -> float:
    """Chunks per second of an update with all its epochs, on as many rows as an iteration has or the time allows.

    After a first one, which compiles, rows are doubled until an update of them takes long enough to be measured.
    """
    iteration = config.rollout.groups_per_iteration * config.rollout.group_size * episode_decisions
    rows, most = min(16, iteration), min(iteration, _MOST_ROWS)
    make = partial(
        make_groups,
        observation,
        decision,
        group_size=config.rollout.group_size,
        episode_decisions=episode_decisions,
        chunk_size=config.policy.chunk_size,
    )
    trainer.update(make(rows=rows), iteration=0)
    while trainer.update(groups := make(rows=rows), iteration=0).duration_s < seconds / 4 and rows < most:
        rows = min(2 * rows, most)
    trained, spent = 0, 0.0
    while not trained or spent < seconds:
        metrics = trainer.update(groups, iteration=0)
        trained, spent = trained + metrics.rows, spent + metrics.duration_s
    return trained / config.optim.epochs / spent
