"""Advantages: by hand, against a plain loop, and what they must not depend on."""

import random
import statistics
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from outcomes import make_trajectory

from vla_train.algo import advantages as module
from vla_train.algo.advantages import trajectory_reward
from vla_train.registry import ESTIMATORS, load

COMPARING = sorted(name for name, entry in ESTIMATORS.items() if entry.needs_group)
"""Estimators that compare the members of a group with each other."""

groups_of_rewards = st.lists(
    st.lists(st.floats(-100, 100).map(lambda reward: round(reward, 3)), min_size=1, max_size=9), min_size=1, max_size=6
)
successes = st.lists(st.lists(st.sampled_from([0.0, 1.0]), min_size=1, max_size=9), min_size=1, max_size=6)


def slow_advantages(groups: list[list[float]], estimator: str) -> list[list[float]]:
    """As the papers write them, one trajectory at a time."""
    means = [statistics.fmean(group) for group in groups]
    match estimator:
        case "grpo":
            spreads = [statistics.stdev(group) if len(group) > 1 else 0.0 for group in groups]
            return [[(r - mean) / (std + 1e-6) for r in group] for group, mean, std in zip(groups, means, spreads, strict=True)]
        case "rloo":
            return [[r - (sum(group) - r) / (len(group) - 1) if len(group) > 1 else 0.0 for r in group] for group in groups]
        case "reinforce":
            everything = [r for group in groups for r in group]
            mean, spread = statistics.fmean(everything), statistics.stdev(everything) if len(everything) > 1 else 0.0
            return [[(r - mean) / (spread + 1e-6) if len(everything) > 1 else 0.0 for r in group] for group in groups]
        case "reinforce++":
            centred = [[r - mean for r in group] for group, mean in zip(groups, means, strict=True)]
            everything = [deviation for group in centred for deviation in group]
            spread = statistics.stdev(everything) if len(everything) > 1 else 0.0
            return [[deviation / (spread + 1e-6) for deviation in group] for group in centred]
    raise AssertionError(estimator)


def advantages(rewards: Sequence[float], group_ids: Sequence[int], *, estimator: str) -> torch.Tensor:
    return module.advantages(rewards, group_ids, estimator=load(estimator, ESTIMATORS, option="algo.advantage"))


def flat(groups: list[list[float]]) -> tuple[list[float], list[int]]:
    return [r for group in groups for r in group], [index for index, group in enumerate(groups) for _ in group]


@pytest.mark.parametrize("estimator", sorted(ESTIMATORS))
@given(groups=groups_of_rewards)
def test_advantages_equal_a_loop_over_groups_of_any_size(estimator: str, groups: list[list[float]]) -> None:
    expected, _ = flat(slow_advantages(groups, estimator))
    np.testing.assert_allclose(advantages(*flat(groups), estimator=estimator), expected, rtol=1e-5, atol=1e-5)


def test_grpo_by_hand_with_the_unbiased_deviation_and_its_epsilon() -> None:
    # 1 success of 4: mean 1/4, deviations 3/4 and -1/4, sum of squares 3/4, over 4 - 1: 1/4, so a deviation of 1/2.
    result = advantages([1, 0, 0, 0], [5, 5, 5, 5], estimator="grpo").double()
    torch.testing.assert_close(result[0], torch.tensor(0.75 / (0.5 + 1e-6)).double(), rtol=0, atol=1e-7)
    torch.testing.assert_close(result[1:], torch.tensor([-0.25 / (0.5 + 1e-6)] * 3).double(), rtol=0, atol=1e-7)


def test_the_epsilon_of_grpo_is_one_millionth() -> None:
    # Where the spread is as small as the epsilon, the epsilon shows: deviation 1e-6 of a spread of sqrt(2) * 1e-6.
    result = advantages([2e-6, 0.0], [0, 0], estimator="grpo")
    assert result.tolist() == pytest.approx([1 / (2**0.5 + 1), -1 / (2**0.5 + 1)], rel=1e-6)


def test_rloo_by_hand() -> None:
    # The success is compared with three failures, each failure with one success among three.
    assert advantages([1, 0, 0, 0], [0] * 4, estimator="rloo").tolist() == pytest.approx([1, -1 / 3, -1 / 3, -1 / 3])


def test_reinforce_plus_plus_by_hand() -> None:
    # Deviations 1/2, -1/2 and 3/4, -1/4, -1/4, -1/4: mean 0, sum of squares 5/4, over 6 - 1: 1/4.
    result = advantages([1, 0, 1, 0, 0, 0], [0, 0, 1, 1, 1, 1], estimator="reinforce++")
    assert result.tolist() == pytest.approx([1, -1, 1.5, -0.5, -0.5, -0.5], abs=1e-5)


def test_grpo_whitens_within_the_group_and_never_over_the_batch() -> None:
    alone = advantages([1, 0, 0, 0], [0] * 4, estimator="grpo")
    beside_others = advantages([1, 0, 0, 0, 1, 1, 1, 0, 9, -9], [0] * 4 + [1] * 4 + [2] * 2, estimator="grpo")
    assert torch.equal(beside_others[:4], alone)


@pytest.mark.parametrize("estimator", COMPARING)
def test_a_group_of_one_and_a_group_that_agrees_get_no_advantage(estimator: str) -> None:
    result = advantages([1, 1, 1, 1, 1, 0], [0, 1, 1, 1, 2, 2], estimator=estimator)
    assert result[:4].tolist() == [0, 0, 0, 0]
    assert result[4] > 0 > result[5]
    assert advantages([1], [0], estimator=estimator).tolist() == [0]
    assert advantages([], [], estimator=estimator).shape == (0,)


@pytest.mark.parametrize("estimator", sorted(ESTIMATORS))
@given(groups=successes, shuffle=st.randoms(use_true_random=False))
def test_neither_the_order_of_trajectories_nor_the_numbers_of_groups_matter(
    estimator: str, groups: list[list[float]], shuffle: random.Random
) -> None:
    rewards, group_ids = flat(groups)
    expected = advantages(rewards, group_ids, estimator=estimator)
    order = list(range(len(rewards)))
    shuffle.shuffle(order)
    renamed = [1000 - 7 * group_ids[index] for index in order]
    result = advantages([rewards[index] for index in order], renamed, estimator=estimator)
    torch.testing.assert_close(result, expected[order], rtol=0, atol=1e-6)


def test_reinforce_compares_groups_of_one_with_each_other() -> None:
    # Mean 1/4, deviations 3/4 and -1/4, spread 1/2: as GRPO within one group of four.
    result = advantages([1, 0, 0, 0], [0, 1, 2, 3], estimator="reinforce")
    assert result.tolist() == pytest.approx([1.5, -0.5, -0.5, -0.5], abs=1e-5)


@pytest.mark.parametrize("wrong", [lambda rewards, groups: rewards[:-1], lambda rewards, groups: rewards * torch.nan])
def test_an_estimator_that_returns_something_else_than_finite_numbers_is_refused(wrong) -> None:
    with pytest.raises(ValueError, match="2 finite advantages"):
        module.advantages([1, 0], [0, 0], estimator=wrong)


@pytest.mark.parametrize("estimator", COMPARING)
@given(groups=successes)
def test_advantages_of_a_group_sum_to_zero(estimator: str, groups: list[list[float]]) -> None:
    rewards, group_ids = flat(groups)
    result = advantages(rewards, group_ids, estimator=estimator)
    sums = torch.zeros(len(groups)).index_add_(0, torch.tensor(group_ids), result)
    torch.testing.assert_close(sums, torch.zeros(len(groups)), rtol=0, atol=1e-4)


@given(groups=successes, shift=st.integers(-5, 5), scale=st.sampled_from([2.0, 10.0]))
def test_grpo_depends_on_neither_origin_nor_unit_of_the_reward(groups: list[list[float]], shift: int, scale: float) -> None:
    rewards, group_ids = flat(groups)
    expected = advantages(rewards, group_ids, estimator="grpo")
    result = advantages([shift + scale * reward for reward in rewards], group_ids, estimator="grpo")
    torch.testing.assert_close(result, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("reward", [float("nan"), float("inf")])
def test_rewards_that_are_not_finite_are_refused(reward: float) -> None:
    with pytest.raises(ValueError, match="rewards must be finite"):
        advantages([0.0, reward], [0, 0], estimator="grpo")


def test_what_is_compared_is_success_or_the_return() -> None:
    failure = make_trajectory(success=False, rewards=(0.25, 0.5))
    assert trajectory_reward(failure, "success") == 0
    assert trajectory_reward(failure, "return") == pytest.approx(0.75)
    assert trajectory_reward(make_trajectory(success=True, rewards=(0.0, 1.0)), "success") == 1
