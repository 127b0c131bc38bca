"""One update: against a slow loop, and what it must not depend on."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from small_policy import ACTION_DIM, CHUNK_SIZE, TEMPERATURE, SmallPolicy, make_groups
from torch import Tensor

from vla_train.config import AlgoConfig, OptimConfig
from vla_train.trainer import optimizer
from vla_train.trainer import trainer as trainer_module
from vla_train.trainer.group_trainer import GroupTrainer, UpdateMetrics
from vla_train.trainer.memory_plan import MemoryPlan
from vla_train.types import Group, Observation

pytestmark = pytest.mark.usefixtures("one_thread")
OPTIM = OptimConfig(learning_rate=1e-2, minibatch_trajectories=100, microbatch_rows=7)


def make_trainer(policy: SmallPolicy, optim: OptimConfig = OPTIM, algo: AlgoConfig | None = None) -> GroupTrainer:
    return GroupTrainer(optim, algo or AlgoConfig(), policy=policy, temperature=TEMPERATURE, total_steps=1, seed=0)


def weights_of(policy: SmallPolicy) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in policy.module.named_parameters()}


def updated(
    optim: OptimConfig = OPTIM,
    algo: AlgoConfig | None = None,
    change: Callable[[list[Group]], list[Group]] = lambda groups: groups,
) -> tuple[dict[str, Tensor], UpdateMetrics]:
    policy = SmallPolicy()
    metrics = make_trainer(policy, optim, algo).update(change(make_groups(policy)), iteration=0)
    return weights_of(policy), metrics


def assert_same(one: dict[str, Tensor], other: dict[str, Tensor], *, atol: float = 1e-6) -> None:
    assert one.keys() == other.keys()
    for name in one:
        torch.testing.assert_close(one[name], other[name], rtol=0, atol=atol, msg=name)


def slow_update(groups: list[Group], *, learning_rate: float) -> tuple[dict[str, Tensor], float]:
    """GRPO written as the paper writes it: loops over trajectories and tokens."""
    policy = SmallPolicy()
    optimizer = torch.optim.AdamW(policy.module.parameters(), lr=learning_rate, weight_decay=0.01)
    total = torch.zeros(())
    num_trajectories = sum(len(group.trajectories) for group in groups)
    for group in groups:
        rewards = [float(trajectory.success) for trajectory in group.trajectories]
        mean, std = float(np.mean(rewards)), float(np.std(rewards, ddof=1))
        for trajectory, reward in zip(group.trajectories, rewards, strict=True):
            advantage = (reward - mean) / (std + 1e-6)
            terms = []
            for step in range(len(trajectory)):
                observation = Observation(
                    arrays={"image": trajectory.observations["image"][step][None]}, instructions=(trajectory.instruction,)
                )
                tokens = torch.from_numpy(trajectory.decisions["token_ids"][step])[None]
                evaluated = policy.evaluate(observation, {"token_ids": tokens}, temperature=TEMPERATURE)
                logprobs = evaluated["logprobs"]
                for action in range(CHUNK_SIZE):
                    for dimension in range(ACTION_DIM):
                        if action < trajectory.num_steps[step]:
                            token = action * ACTION_DIM + dimension
                            ratio = (logprobs[0, token] - float(trajectory.decisions["logprobs"][step, token])).exp()
                            unclipped, clipped = ratio * advantage, ratio.clamp(0.8, 1.28) * advantage
                            terms.append(-torch.minimum(unclipped, clipped))
            total = total + torch.stack(terms).mean() / num_trajectories
    total.backward()
    torch.nn.utils.clip_grad_norm_(policy.module.parameters(), 1.0)
    optimizer.step()
    return weights_of(policy), float(total.detach())


def test_an_update_equals_loops_over_trajectories_and_tokens() -> None:
    expected, loss = slow_update(make_groups(SmallPolicy()), learning_rate=OPTIM.learning_rate)
    weights, metrics = updated()
    assert_same(weights, expected, atol=2e-5)
    assert metrics.loss == pytest.approx(loss, abs=1e-6)


def test_the_cut_into_microbatches_does_not_matter() -> None:
    reference, metrics = updated()
    for rows in (1, 3, 1000):
        weights, other = updated(replace(OPTIM, microbatch_rows=rows))
        assert_same(weights, reference, atol=2e-5)
        assert other.loss == pytest.approx(metrics.loss, abs=1e-6)
        assert other.tokens == metrics.tokens
        assert other.loss_metrics["entropy"] == pytest.approx(metrics.loss_metrics["entropy"], abs=1e-5)


def test_the_order_of_groups_does_not_matter() -> None:
    optim = replace(OPTIM, minibatch_trajectories=5)
    reference, metrics = updated(optim)
    weights, other = updated(optim, change=lambda groups: groups[::-1])
    assert_same(weights, reference, atol=0)
    assert replace(other, duration_s=0) == replace(metrics, duration_s=0)


def test_tokens_after_the_end_of_the_episode_do_not_matter() -> None:
    def scramble(groups: list[Group]) -> list[Group]:
        changed = []
        for group in groups:
            trajectories = []
            for trajectory in group.trajectories:
                logprobs, token_ids = trajectory.decisions["logprobs"].copy(), trajectory.decisions["token_ids"].copy()
                unplayed = int(trajectory.num_steps[-1]) * ACTION_DIM
                logprobs[-1, unplayed:] = -50
                token_ids[-1, unplayed:] = 0
                trajectories.append(replace(trajectory, decisions={"logprobs": logprobs, "token_ids": token_ids}))
            changed.append(replace(group, trajectories=tuple(trajectories)))
        return changed

    reference, _ = updated()
    weights, _ = updated(change=scramble)
    assert_same(weights, reference, atol=0)


def test_the_ending_action_counts() -> None:
    def shorten(groups: list[Group]) -> list[Group]:
        first = groups[0].trajectories[0]
        num_steps = first.num_steps.copy()
        num_steps[-1] -= 1
        trajectories = (replace(first, num_steps=num_steps), *groups[0].trajectories[1:])
        return [replace(groups[0], trajectories=trajectories), *groups[1:]]

    _, reference = updated()
    _, metrics = updated(change=shorten)
    assert metrics.tokens == reference.tokens - ACTION_DIM


def test_groups_may_differ_in_size() -> None:
    _, metrics = updated(
        change=lambda groups: [replace(groups[0], trajectories=groups[0].trajectories[:3]), *groups[1:]],
    )
    assert metrics.trajectories == 11
    assert np.isfinite(metrics.loss)


def test_a_group_that_agrees_moves_nothing_but_the_weight_decay() -> None:
    def agree(groups: list[Group]) -> list[Group]:
        return [
            replace(group, trajectories=tuple(replace(trajectory, success=True) for trajectory in group.trajectories))
            for group in groups
        ]

    weights, metrics = updated(replace(OPTIM, weight_decay=0.0), change=agree)
    assert_same(weights, weights_of(SmallPolicy()), atol=0)
    assert metrics.grad_norm == 0


def test_no_groups_update_nothing() -> None:
    weights, metrics = updated(change=lambda groups: [])
    assert_same(weights, weights_of(SmallPolicy()), atol=0)
    assert metrics.updates == metrics.rows == metrics.trajectories == 0


@pytest.mark.parametrize("advantage", ["grpo", "rloo", "reinforce++"])
@pytest.mark.parametrize("aggregation", ["seq-mean-token-mean", "token-mean"])
def test_an_update_makes_good_episodes_likelier_and_bad_ones_less_likely(advantage: str, aggregation: str) -> None:
    policy = SmallPolicy()
    groups = make_groups(policy)
    algo = AlgoConfig(advantage=advantage, aggregation=aggregation)  # type: ignore[arg-type]
    make_trainer(policy, replace(OPTIM, learning_rate=1e-3), algo).update(groups, iteration=0)
    change = {True: [], False: []}
    for trajectory in (trajectory for group in groups for trajectory in group.trajectories):
        observation = Observation(
            arrays={"image": trajectory.observations["image"]}, instructions=(trajectory.instruction,) * len(trajectory)
        )
        tokens = torch.from_numpy(trajectory.decisions["token_ids"])
        evaluated = policy.evaluate(observation, {"token_ids": tokens}, temperature=TEMPERATURE)
        logprobs = evaluated["logprobs"]
        change[trajectory.success].append(
            float((logprobs.detach() - torch.from_numpy(trajectory.decisions["logprobs"])).mean())
        )
    assert np.mean(change[True]) > 0 > np.mean(change[False])


def test_training_starts_at_ratio_one_and_no_sampling_gap() -> None:
    _, metrics = updated()
    assert metrics.loss_metrics["sampling_gap"] < 1e-6
    assert metrics.loss_metrics["ratio_mean"] == pytest.approx(1, abs=1e-6)
    assert metrics.loss_metrics["clip_fraction_low"] == metrics.loss_metrics["clip_fraction_high"] == 0
    assert metrics.loss_metrics["approx_kl"] < 1e-6


def test_log_probs_recomputed_at_another_temperature_than_sampling_used_are_seen_as_a_gap() -> None:
    policy = SmallPolicy()
    trainer = GroupTrainer(OPTIM, AlgoConfig(), policy=policy, temperature=1.0, total_steps=1, seed=0)
    metrics = trainer.update(make_groups(policy), iteration=0)
    assert metrics.loss_metrics["sampling_gap"] > 0.01


def test_later_minibatches_and_epochs_move_away_from_the_sampling_policy() -> None:
    _, metrics = updated(replace(OPTIM, minibatch_trajectories=3, epochs=3, learning_rate=0.05))
    assert metrics.updates == 12
    assert metrics.trajectories == 12
    assert metrics.loss_metrics["approx_kl"] > 1e-4
    assert metrics.loss_metrics["clip_fraction_high"] > 0
    assert metrics.loss_metrics["sampling_gap"] < 1e-6


def test_the_learning_rate_warms_up_over_updates() -> None:
    policy = SmallPolicy()
    trainer = make_trainer(policy, replace(OPTIM, warmup_steps=4, minibatch_trajectories=6))
    rates = [trainer.update(make_groups(policy), iteration=iteration).learning_rate for iteration in range(3)]
    assert rates == pytest.approx([0.5e-2, 1e-2, 1e-2])


def test_progress_ends_at_all_rows() -> None:
    policy = SmallPolicy()
    groups = make_groups(policy)
    rows = sum(len(trajectory) for group in groups for trajectory in group.trajectories)
    seen: list[tuple[int, int]] = []
    make_trainer(policy, replace(OPTIM, epochs=2)).update(
        groups, iteration=0, on_progress=lambda done, total: seen.append((done, total))
    )
    assert seen[-1] == (2 * rows, 2 * rows)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)


def test_pushed_weights_and_version_arrive() -> None:
    policy, sampler = SmallPolicy(), SmallPolicy(seed=1)
    trainer = make_trainer(policy)
    trainer.update(make_groups(policy), iteration=0)
    trainer.push_weights(sampler, policy)
    assert sampler.version == policy.version == 1
    assert_same(weights_of(sampler), weights_of(policy), atol=0)


def test_weights_that_sampled_two_updates_ago_are_reported_as_lag() -> None:
    policy = SmallPolicy()
    trainer = make_trainer(policy)
    groups = make_groups(policy)
    assert [trainer.update(groups, iteration=iteration).policy_lag for iteration in range(3)] == [0, 1, 2]


def test_weights_that_were_not_changed_keep_their_version() -> None:
    trainer = make_trainer(SmallPolicy())
    trainer.update([], iteration=0)
    assert trainer.version == 0


def test_a_nan_stops_the_update_before_it_reaches_the_weights() -> None:
    policy = SmallPolicy()
    groups = make_groups(policy)
    trainer = make_trainer(policy)
    with torch.no_grad():
        policy.module.head.bias[0] = torch.nan
    before = weights_of(policy)
    with pytest.raises(RuntimeError, match="not finite"):
        trainer.update(groups, iteration=0)
    for name, value in weights_of(policy).items():
        assert torch.equal(value.nan_to_num(7), before[name].nan_to_num(7)), name


def test_gradients_of_an_update_that_was_broken_off_do_not_leak_into_the_next() -> None:
    expected, _ = updated()
    policy = SmallPolicy()
    groups = make_groups(policy)
    trainer = make_trainer(policy)

    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trainer.update(groups, iteration=0, on_progress=interrupt)
    trainer.update(groups, iteration=0)
    assert_same(weights_of(policy), expected, atol=0)


class _Gpu(str):
    """The CPU, by another type."""

    type = "cuda"


def test_memory_is_measured_beside_the_sums_of_gradients_which_are_forgotten_then(monkeypatch: pytest.MonkeyPatch) -> None:
    expected, _ = updated()
    policy = SmallPolicy()
    trainer = make_trainer(policy)
    trained = sum(parameter.numel() for parameter in policy.trainable_module().parameters())
    sums: list[int] = []

    def plan(run: Callable[[int], None], *arguments: object, **options: object) -> MemoryPlan:
        for rows in (2, 4):
            run(rows)
            sums.append(sum(part.numel() for part in trainer.optimizer._sums.values()))
        return MemoryPlan(microbatch_rows=3, recomputed=0.0)

    monkeypatch.setattr(trainer_module, "plan_microbatches", plan)
    monkeypatch.setattr(policy, "recompute", lambda share: None, raising=False)
    trainer.device = _Gpu(trainer.device)
    trainer.update(make_groups(policy), iteration=0)
    assert sums == [trained, trained]
    assert_same(weights_of(policy), expected, atol=2e-5)


@pytest.mark.parametrize("moved_at_once", [1, 1 << 30])
def test_optimizer_state_in_host_memory_gives_the_same_numbers(moved_at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(optimizer, "_MOVED_AT_ONCE", moved_at_once)
    optim = replace(OPTIM, minibatch_trajectories=4, epochs=2)
    expected, metrics = updated(optim)
    weights, other = updated(replace(optim, cpu_offload=True))
    assert_same(weights, expected, atol=0)
    assert replace(other, duration_s=0) == replace(metrics, duration_s=0)


def test_a_last_mini_batch_that_is_not_full_is_trained_on_too() -> None:
    _, metrics = updated(replace(OPTIM, minibatch_trajectories=5))
    assert (metrics.trajectories, metrics.updates) == (12, 3)
    _, whole = updated()
    assert (whole.trajectories, whole.updates) == (12, 1)
    assert metrics.tokens == whole.tokens


def test_trajectories_of_another_chunk_size_are_refused() -> None:
    policy = SmallPolicy()
    groups = make_groups(policy)
    policy.chunk_size = CHUNK_SIZE - 1
    with pytest.raises(ValueError, match="do not fit"):
        make_trainer(policy).update(groups, iteration=0)


def test_a_sample_that_is_given_twice_is_refused() -> None:
    policy = SmallPolicy()
    groups = make_groups(policy)
    with pytest.raises(ValueError, match="twice"):
        make_trainer(policy).update([groups[0], groups[0]], iteration=0)


def test_frozen_weights_are_refused() -> None:
    policy = SmallPolicy()
    policy.module.requires_grad_(False)
    with pytest.raises(ValueError, match="frozen"):
        make_trainer(policy)
