"""The update of GRPO: groups of episodes in, better weights out.

    groups -> advantages -> for each epoch, for each mini-batch: its rows, shared between ranks -> Trainer.step

or, where gradients are accumulated during the rollout (see `accumulation`), each group by itself and one step.

Invariant: what an update does depends on the groups, the seed and the iteration alone: not on the order of groups, the cut
into micro-batches or the number of ranks (up to rounding).
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from vla_train.algo.advantages import Estimator, advantages
from vla_train.algo.weights import action_weights, relative_weights, total_weight
from vla_train.config import AlgoConfig, OptimConfig
from vla_train.policy.base import TrainablePolicy
from vla_train.registry import ESTIMATORS, load
from vla_train.trainer.accumulation import Accumulation
from vla_train.trainer.batching import TrajectorySummary, make_rows, no_rows, plan_minibatches, summarise
from vla_train.trainer.exchange import share_rows
from vla_train.trainer.parallel import ONE_RANK, Ranks
from vla_train.trainer.trainer import Step, Trainer
from vla_train.types import Group, TrainBatch, Trajectory

if TYPE_CHECKING:
    from vla_train.pipeline.timeline import Timeline


@dataclass(frozen=True, kw_only=True, slots=True)
class UpdateMetrics:
    """What one `update` did, over all ranks."""

    loss: float
    """Mean over mini-batches; 0 where nothing was updated, as are all others."""
    loss_metrics: Mapping[str, float]
    """What the loss reports (see `algo.losses`), over all mini-batches; empty where nothing was updated."""
    grad_norm: float
    """Before clipping; mean over mini-batches."""
    grad_norm_max: float
    learning_rate: float
    """Of the last mini-batch."""
    advantage_abs: float
    """Mean |advantage| over trajectories."""
    policy_lag: float
    """Updates between the weights that sampled and those that this one starts from; mean over trajectories (of each, its
    oldest decision)."""
    updates: int
    """Mini-batches."""
    trajectories: int
    rows: int
    """Decisions trained on, times epochs."""
    rows_during_rollout: int
    """Of these, those that were trained on while others were still being played."""
    tokens: int
    """Numbers that counted in the loss (of played actions: tokens, say), times epochs."""
    duration_s: float
    """Spent training, during the rollout too."""

    @property
    def chunks_per_s(self) -> float:
        """Decisions trained on per second."""
        return self.rows / self.duration_s if self.duration_s > 0 else 0.0


class GroupTrainer(Trainer):
    """Updates a policy from groups of trajectories.

    Args:
        optim: AdamW, and the cut of an iteration into mini-batches.
        algo: Names the estimator and the loss, and says what they are told.
        policy: Its trainable weights are updated in place.
        temperature: The one that sampling uses.
        total_steps: See `Trainer`.
        timeline: Takes the spans of training and pushing.
        seed: Of the shuffle.
        ranks: Who else trains (`parallel.join_ranks`); all ranks make the same calls, each with its own groups.
    """

    def __init__(
        self,
        optim: OptimConfig,
        algo: AlgoConfig,
        *,
        policy: TrainablePolicy,
        temperature: float,
        total_steps: int,
        timeline: "Timeline | None" = None,
        seed: int,
        ranks: Ranks = ONE_RANK,
    ) -> None:
        super().__init__(
            optim,
            algo,
            policy=policy,
            temperature=temperature,
            total_steps=total_steps,
            timeline=timeline,
            ranks=ranks,
        )
        self._optim = optim
        self._estimator: Estimator = load(algo.advantage, ESTIMATORS, option="algo.advantage")
        self._seed = seed
        self._accumulation = Accumulation(
            cut=self._cut_alone, backward=self._backward, discard=self.optimizer.discard_gradients
        )

    def prepare_for(self, groups: Sequence[Group]) -> None:
        """See `Trainer.prepare`; by the rows of the first of one group or more."""
        trajectories = groups[0].trajectories
        nothing = torch.zeros(len(trajectories))
        self.prepare(make_rows(trajectories, nothing, nothing, chunk_size=self._policy.chunk_size))

    def accumulate(self, groups: Sequence[Group]) -> bool:
        """Train on one micro-batch of the iteration under way; `update` does what is left, and takes the step.

        Args:
            groups: The iteration's so far, by id: the same as at the call before, and perhaps more.

        Returns:
            Whether there was one. Before the first update of a process there is none: memory is planned then.

        Raises:
            ValueError: See `update`; all that was accumulated is discarded.
        """
        began = time.perf_counter()
        rows = self._accumulation.advance(groups) if self._plan is not None else 0
        if rows:
            if self.device.type == "cuda":  # no decision waits for more than one micro-batch
                torch.cuda.current_stream(self.device).synchronize()
            self._accumulation.early_s += time.perf_counter() - began
            self._record(began, rows=rows)
        return rows > 0

    @property
    def rows_accumulated(self) -> int:
        """Rows of the next update that were trained on already."""
        return self._accumulation.rows

    def update(
        self,
        groups: Sequence[Group],
        *,
        iteration: int,
        on_progress: Callable[[int, int], None] | None = None,
    ) -> UpdateMetrics:
        """Train on the groups of one iteration: all mini-batches, all epochs.

        Args:
            groups: Those of this rank; the iteration's are all ranks' together. Without any, nothing is updated.
            iteration: Number of the iteration: with the seed, it decides the shuffle.
            on_progress: Told how many rows are done, of how many are left to this call, on this rank.

        Raises:
            ValueError: The trajectories do not fit the policy, or hold numbers that are not finite.
            DivergedError: The loss or its gradient is not finite; the weights are as before that mini-batch.
        """
        started = time.perf_counter()
        plan = _plan(groups, self._algo, self._estimator, self.ranks)
        early_rows, early_s = 0, 0.0
        if self._optim.accumulate_during_rollout:
            groups = sorted(groups, key=lambda group: group.group_id)
            if not self._accumulation.began_with(groups):
                self._accumulation.reset()
            early_rows, early_s = self._accumulation.rows, self._accumulation.early_s
            steps = self._accumulated_step(groups, plan, on_progress)
        else:
            steps = self._steps(plan, iteration, on_progress)
        duration_s = early_s + time.perf_counter() - started
        if not steps:
            return _nothing(duration_s)
        metrics = _metrics(
            plan,
            steps,
            version=self.version,
            epochs=self._optim.epochs,
            rows_during_rollout=early_rows,
            duration_s=duration_s,
        )
        self.version += 1
        return metrics

    def _steps(self, plan: "_Plan", iteration: int, on_progress: Callable[[int, int], None] | None) -> list[Step]:
        """One for each mini-batch of each epoch."""
        minibatches = [
            indices
            for epoch in range(self._optim.epochs)
            for indices in plan_minibatches(
                len(plan.summaries),
                minibatch_trajectories=self._optim.minibatch_trajectories,
                key=(self._seed, iteration, epoch),
            )
        ]
        rows = [-(-sum(plan.summaries[index].num_rows for index in indices) // self.ranks.size) for indices in minibatches]
        done, total = 0, sum(rows)

        def trained(num_rows: int) -> None:
            nonlocal done
            done += num_rows
            if on_progress is not None:
                on_progress(done, total)

        return [self.step(self._make_batch(plan, indices, weigh=action_weights), trained) for indices in minibatches]

    def _accumulated_step(
        self, groups: Sequence[Group], plan: "_Plan", on_progress: Callable[[int, int], None] | None
    ) -> list[Step]:
        """The one of an iteration whose gradients are accumulated; none where there are no rows."""
        began, early_rows = time.perf_counter(), self._accumulation.rows
        total = sum(summary.num_rows for summary in plan.summaries) - early_rows
        num_actions = torch.tensor([summary.num_actions for summary in plan.summaries])
        try:
            while self._accumulation.advance(groups):
                if on_progress is not None:
                    on_progress(self._accumulation.rows - early_rows, total)
            if not self._accumulation.sums:
                return []
            scale = 1 / total_weight(num_actions, aggregation=self._algo.aggregation)
            step = self._finish(self._accumulation.sums, scale=scale)
        finally:
            self._accumulation.reset()
        self._record(began, rows=total)
        return [step]

    def _cut_alone(self, group: Group) -> Iterator[TrainBatch]:
        """Micro-batches of a group whose iteration is not known yet."""
        plan = _plan([group], self._algo, self._estimator, self.ranks)
        return self._microbatches(self._make_batch(plan, np.arange(len(plan.summaries)), weigh=relative_weights))

    def _make_batch(self, plan: "_Plan", indices: np.ndarray, *, weigh: Callable[..., Tensor]) -> TrainBatch:
        """This rank's rows of a mini-batch; rows of one instruction are neighbours, so that few need padding."""
        indices = np.array(sorted(indices, key=lambda index: (plan.summaries[index].instruction, index)))
        summaries = [plan.summaries[index] for index in indices]
        advantage = plan.advantages[torch.from_numpy(indices)]
        num_actions = torch.tensor([summary.num_actions for summary in summaries])
        weights = weigh(num_actions, aggregation=self._algo.aggregation)
        own = [place for place, summary in enumerate(summaries) if summary.owner == self.ranks.rank]
        trajectories = [plan.trajectories[summaries[place].group_id, summaries[place].sample_id] for place in own]
        if trajectories:
            rows = make_rows(trajectories, advantage[own], weights[own], chunk_size=self._policy.chunk_size)
        else:
            rows = no_rows(summaries[0], chunk_size=self._policy.chunk_size)
        if self.ranks.size == 1:
            return rows
        return share_rows(
            rows,
            owners=np.repeat([summary.owner for summary in summaries], [summary.num_rows for summary in summaries]),
            instructions=[summary.instruction for summary in summaries for _ in range(summary.num_rows)],
            ranks=self.ranks,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class _Plan:
    """An iteration, the same on all ranks, but for the trajectories that this one holds."""

    summaries: list[TrajectorySummary]
    """N, by group and sample."""
    advantages: Tensor
    """(N,)."""
    trajectories: dict[tuple[int, int], Trajectory]


def _plan(groups: Sequence[Group], algo: AlgoConfig, estimator: Estimator, ranks: Ranks) -> _Plan:
    summaries = summarise(groups, reward=algo.reward, owner=ranks.rank)
    everyone = [summary for part in ranks.gather_objects(summaries) for summary in part]
    everyone.sort(key=lambda summary: (summary.group_id, summary.sample_id))
    for first, second in pairwise(everyone):
        if (first.group_id, first.sample_id) == (second.group_id, second.sample_id):
            raise ValueError(f"sample {first.sample_id} of group {first.group_id} was given twice")
    return _Plan(
        summaries=everyone,
        advantages=advantages(
            [summary.reward for summary in everyone],
            [summary.group_id for summary in everyone],
            estimator=estimator,
        ),
        trajectories={(t.spec.group_id, t.spec.sample_id): t for group in groups for t in group.trajectories},
    )


def _metrics(
    plan: _Plan, steps: Sequence[Step], *, version: int, epochs: int, rows_during_rollout: int, duration_s: float
) -> UpdateMetrics:
    """`version`: of the weights before the first step."""
    first, whole = steps[0].output, steps[0].output
    for step in steps[1:]:
        whole = whole + step.output
    norms = [step.grad_norm for step in steps]
    return UpdateMetrics(
        loss=float(whole.loss) / len(steps),
        loss_metrics={
            **{name: _mean(value, whole.count) for name, value in whole.sums.items()},
            **{name: _mean(value, first.count) for name, value in first.first_sums.items()},
            **{name: float(value) for name, value in whole.maxima.items()},
        },
        grad_norm=float(np.mean(norms)),
        grad_norm_max=max(norms),
        learning_rate=steps[-1].learning_rate,
        advantage_abs=float(plan.advantages.abs().mean()),
        policy_lag=float(np.mean([version - summary.versions[0] for summary in plan.summaries])),
        updates=len(steps),
        trajectories=len(plan.summaries),
        rows=epochs * sum(summary.num_rows for summary in plan.summaries),
        rows_during_rollout=rows_during_rollout,
        tokens=int(whole.count),
        duration_s=duration_s,
    )


def _mean(total: Tensor, count: Tensor) -> float:
    return float(total / count.clamp(min=1))


def _nothing(duration_s: float) -> UpdateMetrics:
    zeros = {
        name: 0
        for name, annotation in UpdateMetrics.__annotations__.items()
        if annotation in (int, float) and name != "duration_s"
    }
    return UpdateMetrics(**zeros, loss_metrics={}, duration_s=duration_s)
