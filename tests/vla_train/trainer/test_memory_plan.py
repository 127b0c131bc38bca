"""Micro-batches and recomputed activations by the memory there is."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vla_train.trainer.memory_plan import Cost, MemoryPlan, choose

KEPT, RECOMPUTED = Cost(per_row=2000, besides=500), Cost(per_row=200, besides=700)


@pytest.mark.parametrize(
    ("available", "rows", "share"),
    [
        (200_000, 24, 0.0),  # a quarter of the memory
        (40_000, 16, 0.0),
        (12_500, 6, 0.0),
        (8_500, 4, 0.0),
        (1_900, 6, 1.0),
        (0, 1, 1.0),
    ],
)
def test_activations_are_kept_while_a_few_rows_fit(available: int, rows: int, share: float) -> None:
    assert choose(KEPT, RECOMPUTED, available=available) == MemoryPlan(microbatch_rows=rows, recomputed=share)


def test_no_more_blocks_are_recomputed_than_memory_asks_for() -> None:
    plan = choose(KEPT, RECOMPUTED, available=8_000)
    assert plan.microbatch_rows == 8
    assert plan.recomputed == pytest.approx(1 - (8_000 - 700 - 8 * 200) / (8 * 1800))


def test_rows_that_are_asked_for_are_kept_whatever_they_cost() -> None:
    assert choose(KEPT, RECOMPUTED, available=100_000, rows=32) == MemoryPlan(microbatch_rows=32, recomputed=0.0)
    assert choose(KEPT, RECOMPUTED, available=10_000, rows=32).recomputed > 0.9


@given(st.integers(0, 10**6), st.integers(1, 5000), st.integers(0, 5000), st.integers(1, 5000), st.integers(0, 5000))
def test_a_plan_fits_where_anything_does(available: int, kept: int, more: int, recomputed: int, besides: int) -> None:
    kept = max(kept, recomputed)
    plan = choose(Cost(per_row=kept, besides=more), Cost(per_row=recomputed, besides=more + besides), available=available)
    assert plan.microbatch_rows >= 1
    assert 0 <= plan.recomputed <= 1
    share_kept = 1 - plan.recomputed
    per_row = recomputed + share_kept * (kept - recomputed)
    if available >= more + besides + recomputed:
        assert more + (besides if plan.recomputed else 0) + plan.microbatch_rows * per_row <= available + 1


def test_a_plan_says_what_it_is() -> None:
    assert str(MemoryPlan(microbatch_rows=16, recomputed=0.0)) == "micro-batches of 16 rows, all activations kept"
    assert str(MemoryPlan(microbatch_rows=8, recomputed=0.25)) == (
        "micro-batches of 8 rows, activations of 25% of the blocks recomputed"
    )
