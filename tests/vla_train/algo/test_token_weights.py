"""What an action counts: by hand, against a plain loop, and what it must not depend on."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vla_train.algo.losses import spread_weights
from vla_train.algo.weights import action_weights, played_actions

AGGREGATIONS = ("seq-mean-token-mean", "token-mean")
counts = st.lists(st.integers(0, 500), min_size=1, max_size=40)


def weights(num_actions: list[int], aggregation: str) -> torch.Tensor:
    return action_weights(torch.tensor(num_actions), aggregation=aggregation)  # type: ignore[arg-type]


def slow_mean(losses: list[list[float]], aggregation: str) -> float:
    """The mean that the weights stand for, over the losses of each trajectory's actions."""
    present = [actions for actions in losses if actions]
    if not present:
        return 0.0
    if aggregation == "token-mean":
        return float(np.mean([loss for actions in present for loss in actions]))
    return float(np.mean([np.mean(actions) for actions in present]))


def test_seq_mean_token_mean_by_hand() -> None:
    # Two trajectories that have actions, so half for each: an action of 10 counts a twentieth, of 2 a quarter.
    assert weights([10, 0, 2], "seq-mean-token-mean").tolist() == [1 / 20, 0, 1 / 4]


def test_token_mean_by_hand() -> None:
    assert weights([10, 0, 2], "token-mean").tolist() == [1 / 12, 0, 1 / 12]


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
@given(num_actions=counts, seed=st.integers(0, 1000))
def test_weighted_sums_are_the_means_of_a_plain_loop(aggregation: str, num_actions: list[int], seed: int) -> None:
    random = np.random.default_rng(seed)
    losses = [random.normal(size=number).tolist() for number in num_actions]
    sums = [sum(actions) for actions in losses]
    total = sum(weight * part for weight, part in zip(weights(num_actions, aggregation).tolist(), sums, strict=True))
    assert total == pytest.approx(slow_mean(losses, aggregation), abs=1e-9)


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
@given(num_actions=counts)
def test_weights_of_all_actions_sum_to_one_or_are_all_zero(aggregation: str, num_actions: list[int]) -> None:
    total = float((weights(num_actions, aggregation) * torch.tensor(num_actions)).sum())
    assert total == pytest.approx(1.0 if any(num_actions) else 0.0)


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
@given(num_actions=counts, empty=st.integers(0, 5))
def test_trajectories_without_actions_change_nothing_and_get_no_weight(
    aggregation: str, num_actions: list[int], empty: int
) -> None:
    padded = weights([*num_actions, *[0] * empty], aggregation)
    torch.testing.assert_close(padded[: len(num_actions)], weights(num_actions, aggregation), rtol=0, atol=0)
    assert padded[len(num_actions) :].tolist() == [0] * empty


def test_long_trajectories_weigh_as_much_as_short_ones_or_as_much_as_they_are_long() -> None:
    num_actions = torch.tensor([8, 800])
    assert (num_actions * weights([8, 800], "seq-mean-token-mean")).tolist() == [0.5, 0.5]
    assert (num_actions * weights([8, 800], "token-mean")).tolist() == pytest.approx([8 / 808, 800 / 808])


def test_the_action_that_ended_the_episode_counts_and_those_after_it_do_not() -> None:
    assert played_actions(torch.tensor([3]), chunk_size=4).tolist() == [[True] * 3 + [False]]


def test_an_episode_that_ends_with_the_first_or_the_last_action_of_a_chunk_is_cut_right() -> None:
    played = played_actions(torch.tensor([1, 4, 0]), chunk_size=4)
    assert played.tolist() == [[True, False, False, False], [True] * 4, [False] * 4]


@given(num_steps=st.lists(st.integers(0, 8), min_size=1, max_size=10), action_dim=st.integers(1, 7), spare=st.integers(0, 3))
def test_every_played_action_counts_with_all_its_dimensions(num_steps: list[int], action_dim: int, spare: int) -> None:
    chunk_size = max(max(num_steps), 1) + spare
    played = played_actions(torch.tensor(num_steps), chunk_size=chunk_size).float()
    spread = spread_weights(played, torch.zeros(len(num_steps), chunk_size * action_dim))
    for row, steps in enumerate(num_steps):
        for token in range(chunk_size * action_dim):
            assert float(spread[row, token]) == pytest.approx((token // action_dim < steps) / action_dim)


def test_one_log_prob_for_a_whole_chunk_weighs_as_much_as_its_actions_together() -> None:
    weights_of_actions = torch.tensor([[0.25, 0.25, 0.0], [0.5, 0.0, 0.0]])
    assert spread_weights(weights_of_actions, torch.zeros(2)).tolist() == [0.5, 0.5]


@pytest.mark.parametrize("shape", [(2, 4), (3,), (1, 3), (2, 3, 1)])
def test_log_probs_that_do_not_belong_to_the_actions_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"expected log-probs of shape \(2,\) or \(2, n \* 3\)"):
        spread_weights(torch.ones(2, 3), torch.zeros(shape))
