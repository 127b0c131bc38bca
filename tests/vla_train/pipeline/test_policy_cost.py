"""The cost of a policy call, learnt from the calls."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vla_train.pipeline.policy_cost import PolicyCost


@given(fixed=st.floats(1e-4, 1.0), per_row=st.floats(1e-4, 0.1), sizes=st.sets(st.integers(1, 256), min_size=2, max_size=6))
def test_a_straight_line_is_found(fixed: float, per_row: float, sizes: set[int]) -> None:
    cost = PolicyCost()
    for rows in sizes:
        cost.record(rows, fixed + per_row * rows)
    assert cost.fixed_rows == pytest.approx(fixed / per_row, rel=1e-3, abs=1e-3)


def test_until_two_sizes_are_known_and_where_rows_are_free_sharing_always_pays() -> None:
    cost = PolicyCost()
    assert cost.fixed_rows == math.inf
    cost.record(8, 0.1)
    cost.record(8, 0.2)
    assert cost.fixed_rows == math.inf
    cost.record(16, 0.1)
    assert cost.fixed_rows == math.inf


def test_one_slow_call_such_as_a_compilation_is_forgotten() -> None:
    cost = PolicyCost()
    cost.record(8, 60.0)
    cost.record(16, 0.3)
    cost.record(8, 0.2)
    assert cost.fixed_rows == pytest.approx(8.0)
