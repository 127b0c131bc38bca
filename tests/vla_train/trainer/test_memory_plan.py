"""Micro-batches and recomputed activations by the memory there is."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rank_processes import run_ranks

from vla_train.trainer import memory_plan
from vla_train.trainer.memory_plan import Cost, MemoryPlan, choose, plan_microbatches, plan_shared_microbatches
from vla_train.trainer.parallel import ONE_RANK, Ranks

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


class _Card:
    """A GPU of so much memory, and a policy whose micro-batches take some of it."""

    def __init__(self, memory: int, monkeypatch: pytest.MonkeyPatch, *, in_pieces: float = 0.0) -> None:
        self.usable = memory * (1 - in_pieces)
        self.share = 0.0
        self.calls: list[int] = []
        monkeypatch.setattr(memory_plan, "available_bytes", lambda device: memory)
        monkeypatch.setattr(memory_plan, "measure", self._measure)
        monkeypatch.setattr(memory_plan, "measure_peak", self._peak)
        monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)

    def recompute(self, share: float) -> None:
        self.share = share

    def run(self, rows: int) -> None:
        self.calls.append(rows)
        if self._cost.of(rows) > self.usable:
            raise torch.OutOfMemoryError

    @property
    def _cost(self) -> Cost:
        per_row = RECOMPUTED.per_row + (1 - self.share) * (KEPT.per_row - RECOMPUTED.per_row)
        return Cost(per_row=round(per_row), besides=KEPT.besides if self.share == 0 else RECOMPUTED.besides)

    def _measure(self, run, device: torch.device) -> Cost:
        for rows in (2, 4):
            run(rows)
        return self._cost

    def _peak(self, run, rows: int, device: torch.device) -> int:
        run(rows)
        return self._cost.of(rows)


@pytest.mark.parametrize("memory", [1_600, 3_000, 8_000, 9_000, 20_000, 100_000])
@pytest.mark.parametrize("in_pieces", [0.0, 0.2, 0.4])
@pytest.mark.parametrize("rows", [None, 1])
def test_what_is_planned_has_been_tried(
    memory: int, in_pieces: float, rows: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    card = _Card(memory, monkeypatch, in_pieces=in_pieces)
    plan = plan_microbatches(card.run, card.recompute, torch.device("cpu"), rows=rows)
    assert card.share == plan.recomputed
    assert rows is None or plan.microbatch_rows == rows
    card.run(plan.microbatch_rows)


def test_a_plan_whose_cuda_graph_does_not_fit_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    card, calls = _Card(30_000, monkeypatch), []
    monkeypatch.setattr(memory_plan, "_LEAST", 1_000)

    def run(rows: int) -> None:
        calls.append(rows)
        if calls[-3:] == [rows] * 3 and rows > 9:  # the third call makes the graph
            raise torch.OutOfMemoryError
        card.run(rows)

    plan = plan_microbatches(run, card.recompute, torch.device("cpu"))
    assert plan.microbatch_rows == 9
    assert calls[-3:] == [9, 9, 9]


def test_where_recomputing_is_not_to_be_chosen_only_rows_are(monkeypatch: pytest.MonkeyPatch) -> None:
    card = _Card(9_000, monkeypatch)
    assert plan_microbatches(card.run, None, torch.device("cpu")) == MemoryPlan(microbatch_rows=4, recomputed=0.0)


def test_what_will_be_taken_later_is_left_free(monkeypatch: pytest.MonkeyPatch) -> None:
    card = _Card(40_000, monkeypatch)
    plan = plan_microbatches(card.run, card.recompute, torch.device("cpu"), owed=30_000)
    assert plan == MemoryPlan(microbatch_rows=4, recomputed=0.0)


def test_a_card_on_which_not_one_row_fits_is_out_of_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    card = _Card(600, monkeypatch)
    with pytest.raises(torch.OutOfMemoryError):
        plan_microbatches(card.run, card.recompute, torch.device("cpu"))


@pytest.mark.parametrize("memory", [3_000, 8_000, 9_000, 20_000, 100_000])
@pytest.mark.parametrize("rows", [None, 1, 3, 6])
@pytest.mark.parametrize("blocks", [1, 2, 4, 32])
def test_what_ranks_plan_together_fits_untried(
    memory: int, rows: int | None, blocks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    card = _Card(memory, monkeypatch, in_pieces=0.1)

    def recompute(share: float) -> None:
        card.recompute(math.ceil(share * blocks) / blocks)

    plan = plan_shared_microbatches(card.run, recompute, torch.device("cpu"), ranks=ONE_RANK, rows=rows)
    assert max(card.calls) <= min(rows or 4, 4)
    assert rows is None or plan.microbatch_rows == rows
    if blocks == 32 and memory >= 20_000:
        assert plan.recomputed == 0
    if rows is None or RECOMPUTED.of(rows) <= card.usable:
        card.run(plan.microbatch_rows)


def plan_of(ranks: Ranks, memories: list[int], costs: list[Cost]) -> MemoryPlan:
    """With so much memory on each rank, and such costs."""
    memory_plan.available_bytes = lambda device: memories[ranks.rank]
    memory_plan.measure = lambda run, device: costs[ranks.rank]
    return plan_shared_microbatches(lambda rows: None, None, torch.device("cpu"), ranks=ranks)


def test_ranks_that_share_the_weights_plan_for_the_one_with_the_least_memory() -> None:
    plans = run_ranks(plan_of, 2, [20_000, 10_000], [Cost(per_row=1200, besides=100), Cost(per_row=1000, besides=700)])
    assert plans == [MemoryPlan(microbatch_rows=(9_000 - 700) // 1200, recomputed=0.0)] * 2
