"""Gradients accumulated group by group: the update of a whole mini-batch, to the bit the same however much is done early."""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from small_policy import CHUNK_SIZE, TEMPERATURE, SmallPolicy, make_groups
from torch import Tensor

from vla_train.algo.advantages import grpo
from vla_train.config import AlgoConfig, OptimConfig
from vla_train.errors import DivergedError
from vla_train.pipeline.timeline import Timeline
from vla_train.trainer.accumulation import require_accumulable
from vla_train.trainer.group_trainer import GroupTrainer, UpdateMetrics
from vla_train.trainer.parallel import ONE_RANK, Ranks
from vla_train.types import Group

pytestmark = pytest.mark.usefixtures("one_thread")
PLAIN = OptimConfig(learning_rate=1e-2, minibatch_trajectories=100, microbatch_rows=7, max_grad_norm=0.01)
"""Gradients are clipped, by the norm that they have when they were scaled."""
ACCUMULATING = replace(PLAIN, accumulate_during_rollout=True)

Early = Callable[[GroupTrainer, Sequence[Group]], None]


def make_trainer(
    policy: SmallPolicy, optim: OptimConfig = ACCUMULATING, algo: AlgoConfig | None = None, timeline: Timeline | None = None
) -> GroupTrainer:
    trainer = GroupTrainer(
        optim, algo or AlgoConfig(), policy=policy, temperature=TEMPERATURE, total_steps=1, timeline=timeline, seed=0
    )
    trainer.prepare_for(make_groups(policy))
    return trainer


def weights_of(policy: SmallPolicy) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in policy.module.named_parameters()}


def nothing(trainer: GroupTrainer, groups: Sequence[Group]) -> None:
    pass


def all_but_the_last(trainer: GroupTrainer, groups: Sequence[Group]) -> None:
    while trainer.accumulate(groups[:-1]):
        pass


def updated(
    early: Early = nothing, *, optim: OptimConfig = ACCUMULATING, algo: AlgoConfig | None = None
) -> tuple[dict[str, Tensor], UpdateMetrics]:
    """Weights after two updates, and metrics of the second one."""
    policy = SmallPolicy()
    trainer = make_trainer(policy, optim, algo)
    for iteration in range(2):
        groups = make_groups(policy, num_groups=2 + iteration, seed=iteration)
        early(trainer, groups)
        metrics = trainer.update(groups, iteration=iteration)
    return weights_of(policy), metrics


def assert_same(one: dict[str, Tensor], other: dict[str, Tensor], *, atol: float = 0.0) -> None:
    assert one.keys() == other.keys()
    for name in one:
        torch.testing.assert_close(one[name], other[name], rtol=0, atol=atol, msg=name)


def comparable(metrics: UpdateMetrics) -> UpdateMetrics:
    return replace(metrics, duration_s=0.0, rows_during_rollout=0)


@pytest.mark.parametrize("advantage", ["grpo", "rloo"])
@pytest.mark.parametrize("aggregation", ["seq-mean-token-mean", "token-mean"])
def test_accumulated_gradients_make_the_update_of_the_whole_mini_batch(advantage: str, aggregation: str) -> None:
    algo = AlgoConfig(advantage=advantage, aggregation=aggregation)  # type: ignore[arg-type]
    expected, plain = updated(optim=PLAIN, algo=algo)
    weights, metrics = updated(all_but_the_last, algo=algo)
    assert_same(weights, expected, atol=2e-5)
    assert 0 < metrics.rows_during_rollout < metrics.rows == plain.rows
    assert plain.rows_during_rollout == 0
    assert metrics.loss_metrics == pytest.approx(plain.loss_metrics, abs=1e-5)
    for name in ("loss", "grad_norm", "advantage_abs", "learning_rate", "policy_lag", "updates", "trajectories", "tokens"):
        assert getattr(metrics, name) == pytest.approx(getattr(plain, name), abs=1e-6), name


def test_however_much_is_done_during_the_rollout_the_update_is_the_same_to_the_bit() -> None:
    expected, metrics = updated()
    done = set()
    for count in range(12):

        def early(trainer: GroupTrainer, groups: Sequence[Group], count: int = count) -> None:
            for number in range(count):  # groups come one by one, at another time in each run
                trainer.accumulate(groups[: min(number // 2, len(groups))])

        weights, other = updated(early)
        assert_same(weights, expected)
        assert comparable(other) == comparable(metrics)
        done.add(other.rows_during_rollout)
    assert {0, metrics.rows} < done, "nothing, a part and all of it were done early"


def test_the_order_of_groups_does_not_matter() -> None:
    results = []
    for step in (1, -1):
        policy = SmallPolicy()
        trainer, groups = make_trainer(policy), make_groups(policy)
        trainer.accumulate(groups[:1])
        metrics = trainer.update(groups[::step], iteration=0)
        results.append((weights_of(policy), comparable(metrics)))
    assert_same(results[0][0], results[1][0])
    assert results[0][1] == results[1][1]


def test_weights_stay_as_they_are_until_all_was_played() -> None:
    policy = SmallPolicy()
    trainer = make_trainer(policy)
    all_but_the_last(trainer, make_groups(policy))
    assert trainer.rows_accumulated > 0
    assert_same(weights_of(policy), weights_of(SmallPolicy()))
    assert (trainer.num_updates, trainer.version) == (0, 0)


def test_nothing_is_done_before_the_memory_was_planned() -> None:
    policy = SmallPolicy()
    trainer = GroupTrainer(ACCUMULATING, AlgoConfig(), policy=policy, temperature=TEMPERATURE, total_steps=1, seed=0)
    groups = make_groups(policy)
    assert not trainer.accumulate(groups)
    trainer.update(groups, iteration=0)
    assert trainer.accumulate(make_groups(policy, seed=1))


@pytest.mark.parametrize("error", [KeyboardInterrupt, FloatingPointError])
def test_what_was_accumulated_before_an_error_counts_once(error: type[BaseException]) -> None:
    def fail(gradient: Tensor) -> None:
        raise error

    def broken_off(trainer: GroupTrainer, groups: Sequence[Group]) -> None:
        trainer.accumulate(groups)
        handle = trainer._module.inner.weight.register_hook(fail)  # the backward pass ends there: other gradients were added
        with pytest.raises(error):
            trainer.accumulate(groups)
        handle.remove()
        assert trainer.rows_accumulated == 0
        trainer.accumulate(groups)

    expected, metrics = updated()
    weights, other = updated(broken_off)
    assert_same(weights, expected)
    assert comparable(other) == comparable(metrics)


def test_groups_that_the_update_is_not_given_are_forgotten() -> None:
    def with_others(trainer: GroupTrainer, groups: Sequence[Group]) -> None:
        trainer.accumulate(make_groups(SmallPolicy(seed=1), seed=5))

    expected, _ = updated()
    weights, metrics = updated(with_others)
    assert_same(weights, expected)
    assert metrics.rows_during_rollout == 0


def test_an_iteration_without_groups_updates_nothing() -> None:
    policy = SmallPolicy()
    trainer = make_trainer(policy)
    assert not trainer.accumulate(())
    assert trainer.update((), iteration=0).updates == 0
    assert trainer.version == 0


def test_a_nan_is_noticed_before_the_step_and_leaves_nothing_behind() -> None:
    policy = SmallPolicy()
    trainer, groups = make_trainer(policy), make_groups(policy)
    with torch.no_grad():
        policy.module.head.bias[0] = torch.nan
    assert trainer.accumulate(groups)
    with pytest.raises(DivergedError):
        trainer.update(groups, iteration=0)
    with torch.no_grad():
        policy.module.head.bias[0] = weights_of(SmallPolicy())["head.bias"][0]
    assert_same(weights_of(policy), weights_of(SmallPolicy()))
    assert trainer.update(groups, iteration=0).rows_during_rollout == 0


def test_groups_that_do_not_fit_the_policy_are_refused_during_the_rollout_too() -> None:
    policy = SmallPolicy()
    trainer, groups = make_trainer(policy), make_groups(policy)
    policy.chunk_size = CHUNK_SIZE - 1
    with pytest.raises(ValueError, match="do not fit"):
        trainer.accumulate(groups)


def test_progress_and_time_tell_what_was_left_and_what_was_done(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.perf_counter", partial(next, itertools.count(0.0)))  # a second from look to look
    policy, timeline = SmallPolicy(), Timeline()
    trainer = make_trainer(policy, timeline=timeline)
    groups = make_groups(policy)
    all_but_the_last(trainer, groups)
    early, seen = trainer.rows_accumulated, []
    metrics = trainer.update(groups, iteration=0, on_progress=lambda done, total: seen.append((done, total)))
    assert metrics.rows_during_rollout == early == sum(len(t) for group in groups[:-1] for t in group.trajectories)
    assert seen[-1] == (metrics.rows - early, metrics.rows - early)
    spans = timeline.spans()
    assert {(span.resource, span.kind) for span in spans} == {("trainer", "train")}
    assert sum(span.rows for span in spans) == metrics.rows
    *early_spans, last = spans
    assert len(early_spans) > 4
    assert metrics.duration_s >= len(early_spans) + last.end - last.start


def silent(rewards: Tensor, group_index: Tensor) -> Tensor:
    return grpo(rewards, group_index)


def outspoken(rewards: Tensor, group_index: Tensor) -> Tensor:
    return grpo(rewards, group_index)


outspoken.per_group = True  # type: ignore[attr-defined]


def test_an_estimator_of_the_users_says_that_it_looks_at_one_group_at_a_time() -> None:
    require_accumulable(AlgoConfig(), ONE_RANK)
    require_accumulable(AlgoConfig(advantage=f"{__name__}:outspoken"), ONE_RANK)
    with pytest.raises(ValueError, match=r"accumulate_during_rollout .*silent.* per_group"):
        require_accumulable(AlgoConfig(advantage=f"{__name__}:silent"), ONE_RANK)


def test_several_ranks_are_refused() -> None:
    with pytest.raises(ValueError, match="accumulate_during_rollout works on one rank, got 2"):
        require_accumulable(AlgoConfig(), Ranks(size=2))


def test_members_of_a_group_of_one_move_nothing() -> None:
    policy = SmallPolicy()
    trainer = make_trainer(policy, replace(ACCUMULATING, weight_decay=0.0))
    groups = [replace(group, trajectories=group.trajectories[:1]) for group in make_groups(policy)]
    trainer.accumulate(groups[:1])
    assert np.isfinite(trainer.update(groups, iteration=0).loss)
    assert_same(weights_of(policy), weights_of(SmallPolicy()))
