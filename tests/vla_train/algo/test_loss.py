"""The loss: token by token against a plain loop, at the bounds of the clip, and what it must not depend on."""

import itertools
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from vla_train.algo.losses import LossInputs, LossOutput, clipped
from vla_train.config import AlgoConfig

CLIP = {"clip_low": 0.2, "clip_high": 0.28}
ROWS, TOKENS = 7, 6


def make_batch(seed: int = 0, *, spread: float = 0.3) -> dict[str, Tensor]:
    """Random rows; a third of the tokens does not count."""
    random = np.random.default_rng(seed)
    logprobs = random.uniform(-4, -0.1, (ROWS, TOKENS))
    batch = {
        "logprobs": logprobs,
        "old_logprobs": logprobs + random.normal(scale=spread, size=(ROWS, TOKENS)),
        "advantages": random.normal(size=ROWS),
        "weights": random.uniform(0.01, 1, (ROWS, TOKENS)) * (random.random((ROWS, TOKENS)) > 1 / 3),
        "entropies": random.uniform(0, 5, (ROWS, TOKENS)),
    }
    return {name: torch.from_numpy(array.astype(np.float32)) for name, array in batch.items()}


def evaluate(batch: dict[str, Tensor], **clip: float) -> LossOutput:
    """Here every action is one token."""
    inputs = LossInputs(decision={"logprobs": batch["old_logprobs"]}, advantages=batch["advantages"], weights=batch["weights"])
    evaluated = {"logprobs": batch["logprobs"], "entropies": batch["entropies"]}
    return clipped(evaluated, inputs, AlgoConfig(**{**CLIP, **clip}))


def loss_and_gradient(batch: dict[str, Tensor], **clip: float) -> tuple[float, Tensor, dict[str, float]]:
    logprobs = batch["logprobs"].clone().requires_grad_()
    output = evaluate({**batch, "logprobs": logprobs}, **clip)
    (gradient,) = torch.autograd.grad(output.loss, logprobs)
    return float(output.loss.detach()), gradient, statistics_of(output)


def statistics_of(output: LossOutput) -> dict[str, float]:
    named: Mapping[str, Tensor] = {**output.sums, **output.first_sums, **output.maxima}
    values = {name: float(value) for name, value in named.items()}
    return {"count": float(output.count), "loss": float(output.loss.detach()), **values}


def slow_loss_and_gradient(batch: dict[str, Tensor]) -> tuple[float, Tensor]:
    """PPO's objective as written, one token at a time, with its derivative worked out by hand."""
    total, gradient = 0.0, torch.zeros(ROWS, TOKENS)
    for row in range(ROWS):
        for token in range(TOKENS):
            weight, advantage = float(batch["weights"][row, token]), float(batch["advantages"][row])
            if weight == 0:
                continue
            ratio = math.exp(float(batch["logprobs"][row, token]) - float(batch["old_logprobs"][row, token]))
            clipped = min(max(ratio, 0.8), 1.28)
            total += weight * -min(ratio * advantage, clipped * advantage)
            cut = (advantage > 0 and ratio > 1.28) or (advantage < 0 and ratio < 0.8)
            gradient[row, token] = 0.0 if cut else -weight * ratio * advantage
    return total, gradient


@given(seed=st.integers(0, 10_000), spread=st.sampled_from([0.0, 0.1, 0.3, 1.0, 3.0]))
def test_loss_and_gradient_equal_a_loop_over_tokens(seed: int, spread: float) -> None:
    batch = make_batch(seed, spread=spread)
    loss, gradient, _ = loss_and_gradient(batch)
    expected, expected_gradient = slow_loss_and_gradient(batch)
    assert loss == pytest.approx(expected, rel=1e-4, abs=1e-4)
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-4, atol=1e-4)


def one_token(ratio: float, advantage: float, **clip: float) -> tuple[float, float, dict[str, float]]:
    """Loss and gradient of a single token of weight 1 with this probability ratio."""
    batch = {
        "logprobs": torch.tensor([[math.log(ratio)]]),
        "old_logprobs": torch.zeros(1, 1),
        "advantages": torch.tensor([advantage]),
        "weights": torch.ones(1, 1),
        "entropies": torch.zeros(1, 1),
    }
    loss, gradient, sums = loss_and_gradient(batch, **clip)
    return loss, float(gradient), sums


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "gradient"),
    [
        (1.0, 2.0, -2.0, -2.0),
        (1.0, -2.0, 2.0, 2.0),
        (1.27, 2.0, -2.54, -2.54),  # above 1.2: clip-higher leaves room
        (1.5, 2.0, -2.56, 0.0),  # good, and likelier than 1.28 times already
        (1.5, -2.0, 3.0, 3.0),  # bad and likelier: never cut, and no dual clip
        (50.0, -2.0, 100.0, 100.0),
        (0.5, -2.0, 1.6, 0.0),  # bad, and rarer than 0.8 times already
        (0.5, 2.0, -1.0, -1.0),  # good and rarer: never cut
        (0.81, -2.0, 1.62, 1.62),
    ],
)
def test_the_clip_by_hand_for_both_signs_of_the_advantage(ratio: float, advantage: float, loss: float, gradient: float) -> None:
    result = one_token(ratio, advantage)
    assert result[:2] == pytest.approx((loss, gradient), rel=1e-5)


def test_clip_higher_is_above_only() -> None:
    symmetric = {"clip_low": 0.2, "clip_high": 0.2}
    assert one_token(1.25, 1.0)[1] == pytest.approx(-1.25, rel=1e-5)
    assert one_token(1.25, 1.0, **symmetric)[1] == 0
    assert one_token(0.75, -1.0)[1] == one_token(0.75, -1.0, **symmetric)[1] == 0


@pytest.mark.parametrize(("bound", "advantage"), [(1.28, 1.0), (0.8, -1.0)])
def test_the_gradient_ends_at_the_bound(bound: float, advantage: float) -> None:
    beyond = bound * (1 + 1e-5 * advantage)
    within = bound * (1 - 1e-5 * advantage)
    assert one_token(beyond, advantage)[1] == 0
    assert one_token(within, advantage)[1] == pytest.approx(-bound * advantage, rel=1e-4)
    assert one_token(beyond, advantage)[0] == pytest.approx(one_token(within, advantage)[0], rel=1e-4)


def test_a_ratio_that_would_overflow_stays_finite() -> None:
    for logprob in (-1000.0, 1000.0):
        batch = make_batch()
        batch["logprobs"][0, 0], batch["weights"][0, 0] = logprob, 1.0
        loss, gradient, _ = loss_and_gradient(batch)
        assert math.isfinite(loss)
        assert gradient.isfinite().all()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), -1e30])
@pytest.mark.parametrize("name", ["logprobs", "old_logprobs", "advantages", "entropies"])
def test_tokens_that_do_not_count_contribute_nothing_whatever_they_hold(name: str, value: float) -> None:
    clean = make_batch()
    clean["weights"][2] = 0
    dirty = {key: tensor.clone() for key, tensor in clean.items()}
    masked = clean["weights"] == 0
    assert 0 < masked.sum() < masked.numel()
    dirty[name][masked.all(dim=1) if name == "advantages" else masked] = value
    loss, gradient, sums = loss_and_gradient(dirty)
    expected_loss, expected_gradient, expected_sums = loss_and_gradient(clean)
    assert loss == expected_loss
    assert torch.equal(gradient, expected_gradient)
    assert (gradient[masked] == 0).all()
    assert sums == expected_sums


@pytest.mark.parametrize("rows", [[3], range(ROWS)], ids=["one row", "all rows"])
@pytest.mark.parametrize("value", [0.0, float("nan"), -float("inf")])
def test_masked_rows_and_micro_batches_give_zero_and_not_nan(rows: Any, value: float) -> None:
    batch = make_batch()
    for row in rows:
        batch["weights"][row] = 0
        batch["logprobs"][row] = value
    loss, gradient, sums = loss_and_gradient(batch)
    assert math.isfinite(loss)
    assert gradient.isfinite().all()
    assert (gradient[list(rows)] == 0).all()
    if len(rows) == ROWS:
        assert loss == 0
        assert set(sums.values()) == {0}


def test_a_nan_that_counts_is_not_hidden() -> None:
    batch = make_batch()
    batch["logprobs"][0, 0], batch["weights"][0, 0] = float("nan"), 1.0
    assert math.isnan(loss_and_gradient(batch)[0])


def select(batch: dict[str, Tensor], rows: Any) -> dict[str, Tensor]:
    return {name: tensor[rows] for name, tensor in batch.items()}


def assert_same_sums(one: dict[str, float], other: dict[str, float]) -> None:
    assert one == pytest.approx(other, rel=1e-5, abs=1e-5)


@given(seed=st.integers(0, 1000), cuts=st.sets(st.integers(1, ROWS - 1)))
def test_the_cut_into_micro_batches_changes_neither_loss_nor_gradient_nor_statistics(seed: int, cuts: set[int]) -> None:
    batch = make_batch(seed)
    loss, gradient, sums = loss_and_gradient(batch)
    places = [0, *sorted(cuts), ROWS]
    parts = [select(batch, slice(first, last)) for first, last in itertools.pairwise(places)]
    assert sum(loss_and_gradient(part)[0] for part in parts) == pytest.approx(loss, abs=1e-5)
    assert torch.equal(torch.cat([loss_and_gradient(part)[1] for part in parts]), gradient)
    whole = evaluate(parts[0])
    for part in parts[1:]:
        whole = whole + evaluate(part)
    assert_same_sums(statistics_of(whole), sums)


@given(seed=st.integers(0, 1000), order=st.permutations(range(ROWS)))
def test_the_order_of_rows_does_not_matter(seed: int, order: list[int]) -> None:
    batch = make_batch(seed)
    loss, gradient, sums = loss_and_gradient(batch)
    shuffled_loss, shuffled_gradient, shuffled_sums = loss_and_gradient(select(batch, order))
    assert shuffled_loss == pytest.approx(loss, abs=1e-5)
    assert torch.equal(shuffled_gradient, gradient[order])
    assert_same_sums(shuffled_sums, sums)


@given(seed=st.integers(0, 1000), rows=st.integers(0, 4))
def test_padding_does_not_matter(seed: int, rows: int) -> None:
    batch = make_batch(seed)

    def pad(tensor: Tensor, value: float = 0.0) -> Tensor:
        return torch.cat([tensor, torch.full((rows, *tensor.shape[1:]), value)])

    padded = {name: pad(tensor, -math.inf if "logprobs" in name else 0.0) for name, tensor in batch.items()}
    loss, gradient, sums = loss_and_gradient(batch)
    padded_loss, padded_gradient, padded_sums = loss_and_gradient(padded)
    assert padded_loss == pytest.approx(loss, abs=1e-5)
    assert torch.equal(padded_gradient[:ROWS], gradient)
    assert not padded_gradient[ROWS:].any()
    assert_same_sums(padded_sums, sums)


@given(seed=st.integers(0, 1000))
def test_one_log_prob_for_a_whole_chunk_is_weighed_and_clipped_as_one(seed: int) -> None:
    batch = make_batch(seed)
    chunks = {name: batch[name].sum(1) for name in ("logprobs", "old_logprobs", "entropies")}
    loss, _, sums = loss_and_gradient({**batch, **chunks})
    ratio = (chunks["logprobs"] - chunks["old_logprobs"]).exp()
    weights, advantages = batch["weights"].sum(1), batch["advantages"]
    expected = -(weights * torch.minimum(ratio * advantages, ratio.clamp(0.8, 1.28) * advantages)).sum()
    assert loss == pytest.approx(float(expected), rel=1e-4, abs=1e-4)
    assert sums["count"] == int((weights != 0).sum())


def test_statistics_by_hand() -> None:
    ratios = torch.tensor([[1.0, 1.5, 0.5, 9.0], [0.5, 1.5, 1.0, 9.0]])
    batch = {
        "logprobs": ratios.log(),
        "old_logprobs": torch.zeros(2, 4),
        "advantages": torch.tensor([1.0, -1.0]),
        "weights": torch.tensor([[0.1, 0.2, 0.4, 0.0], [0.3, 0.5, 0.0, 0.0]]),
        "entropies": torch.tensor([[1.0, 2.0, 4.0, 100.0], [3.0, 5.0, 100.0, 100.0]]),
    }
    loss, _, sums = loss_and_gradient(batch)
    expected = {
        "count": 5,
        "loss": -0.1 - 0.2 * 1.28 + 0.3 * 0.8 - 0.4 * 0.5 + 0.5 * 1.5,
        "ratio_mean": 5.0,
        "ratio_max": 1.5,
        "clip_fraction_low": 1,
        "clip_fraction_high": 1,
        "approx_kl": sum(r - 1 - math.log(r) for r in (1.0, 1.5, 0.5, 0.5, 1.5)),
        "sampling_gap": 2 * math.log(1.5) + 2 * math.log(2),
        "entropy": 15,
    }
    assert loss == pytest.approx(expected["loss"])
    assert sums == pytest.approx(expected, abs=1e-5)


def test_a_policy_without_entropies_reports_none() -> None:
    batch = make_batch()
    inputs = LossInputs(decision={"logprobs": batch["old_logprobs"]}, advantages=batch["advantages"], weights=batch["weights"])
    assert "entropy" not in clipped({"logprobs": batch["logprobs"]}, inputs, AlgoConfig()).sums


def test_entropy_is_watched_and_not_rewarded() -> None:
    batch = {name: tensor.requires_grad_(name in ("logprobs", "entropies")) for name, tensor in make_batch().items()}
    output = evaluate(batch)
    assert torch.autograd.grad(output.loss, batch["entropies"], allow_unused=True) == (None,)
    assert not output.sums["entropy"].requires_grad
