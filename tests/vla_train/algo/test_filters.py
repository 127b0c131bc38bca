"""Which groups are kept: bounds included, as published."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from outcomes import make_group, make_group_of_returns

from vla_train.algo.advantages import advantages, grpo
from vla_train.algo.filters import has_signal
from vla_train.config import AlgoConfig, RolloutConfig

PUBLISHED = RolloutConfig()
SUCCESS, RETURN = AlgoConfig(), AlgoConfig(reward="return")


def kept(size: int, rollout: RolloutConfig = PUBLISHED) -> list[int]:
    """Numbers of successes among `size` with which a group is kept."""
    return [n for n in range(size + 1) if has_signal(make_group(successes=n, size=size), rollout, SUCCESS)]


def test_of_eight_samples_only_unanimous_groups_are_dropped() -> None:
    assert (PUBLISHED.min_success_rate, PUBLISHED.max_success_rate) == (0.1, 0.9)
    assert kept(8) == list(range(1, 8))


def test_a_tenth_and_nine_tenths_are_inside() -> None:
    assert kept(10) == list(range(1, 10))


def test_less_than_a_tenth_and_more_than_nine_tenths_are_outside() -> None:
    assert kept(20) == list(range(2, 19))


@pytest.mark.parametrize("size", [3, 6, 7, 9, 10, 49])
def test_bounds_that_are_fractions_of_the_size_are_inside_in_spite_of_rounding(size: int) -> None:
    for low in range(1, size // 2):
        bounds = RolloutConfig(min_success_rate=low / size, max_success_rate=1 - low / size)
        assert kept(size, bounds) == list(range(low, size - low + 1))


def test_the_widest_bounds_keep_everything_and_equal_ones_one_rate() -> None:
    assert kept(4, RolloutConfig(min_success_rate=0, max_success_rate=1)) == [0, 1, 2, 3, 4]
    assert kept(4, RolloutConfig(min_success_rate=0.5, max_success_rate=0.5)) == [2]


@given(size=st.integers(2, 12), successes=st.integers(0, 12))
def test_what_is_dropped_of_up_to_ten_samples_has_no_advantage_anyway(size: int, successes: int) -> None:
    successes = min(successes, size)
    result = advantages([1.0] * successes + [0.0] * (size - successes), [0] * size, estimator=grpo)
    if size <= 10:
        assert has_signal(make_group(successes=successes, size=size), PUBLISHED, SUCCESS) == bool(result.any())


def test_with_returns_a_group_is_kept_where_they_differ_though_nothing_succeeded() -> None:
    assert has_signal(make_group_of_returns(0.0, 0.0, -1.5), PUBLISHED, RETURN)
    assert not has_signal(make_group_of_returns(-1.5, -1.5), PUBLISHED, RETURN)
    assert not has_signal(make_group_of_returns(0.0, 0.0, -1.5), PUBLISHED, SUCCESS)


def test_the_same_rewards_at_other_times_are_no_signal_though_their_float32_sums_differ() -> None:
    assert not has_signal(make_group_of_returns(1000.0, 1000.00006, 999.99994), PUBLISHED, RETURN)
    assert not has_signal(make_group_of_returns(0.0, 0.0), PUBLISHED, RETURN)
    assert has_signal(make_group_of_returns(1000.0, 1000.01), PUBLISHED, RETURN)
    assert has_signal(make_group_of_returns(0.0, 1e-9), PUBLISHED, RETURN)
