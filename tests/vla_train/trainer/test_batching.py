"""From trajectories to rows: each is trained on once, in mini-batches of nearly equal size, and only where it was played."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from small_policy import ACTION_DIM, CHUNK_SIZE, NUM_TOKENS, SmallPolicy, make_trajectory

from vla_train.algo.weights import token_weights
from vla_train.trainer.batching import make_rows, plan_minibatches, select_rows
from vla_train.types import Trajectory

SHAPE = {"chunk_size": CHUNK_SIZE, "action_dim": ACTION_DIM}


@given(num_trajectories=st.integers(0, 700), most=st.integers(1, 200), seed=st.integers(0, 5))
def test_mini_batches_hold_every_trajectory_once_and_are_as_equal_as_can_be(
    num_trajectories: int, most: int, seed: int
) -> None:
    plan = plan_minibatches(num_trajectories, minibatch_trajectories=most, key=(seed, 3, 0))
    assert sorted(np.concatenate([[], *plan]).tolist()) == list(range(num_trajectories))
    sizes = [len(indices) for indices in plan]
    assert len(sizes) == -(-num_trajectories // most)
    if sizes:
        assert 1 <= max(sizes) <= most
        assert max(sizes) - min(sizes) <= 1


def test_the_published_iteration_is_four_updates() -> None:
    plan = plan_minibatches(512, minibatch_trajectories=128, key=(0, 0, 0))
    assert [len(indices) for indices in plan] == [128] * 4


def test_the_shuffle_depends_on_seed_iteration_and_epoch() -> None:
    def shuffle(*key: int) -> list[int]:
        return np.concatenate(plan_minibatches(50, minibatch_trajectories=50, key=key)).tolist()

    assert shuffle(0, 0, 0) == shuffle(0, 0, 0)
    others = [shuffle(1, 0, 0), shuffle(0, 1, 0), shuffle(0, 0, 1), list(range(50))]
    assert all(shuffle(0, 0, 0) != other for other in others)


def make_trajectories() -> list[Trajectory]:
    policy = SmallPolicy()
    return [
        make_trajectory(policy, group_id=group_id, sample_id=0, success=True, length=length)
        for group_id, length in enumerate((1, 4, 2))
    ]


def test_rows_are_the_decisions_one_after_another_with_their_trajectorys_advantage_and_weight() -> None:
    trajectories = make_trajectories()
    rows = make_rows(trajectories, torch.tensor([1.0, -2.0, 3.0]), torch.tensor([0.1, 0.2, 0.3]), **SHAPE)
    row = 0
    for trajectory, advantage, weight in zip(trajectories, (1, -2, 3), (0.1, 0.2, 0.3), strict=True):
        for step in range(len(trajectory)):
            assert rows.instructions[row] == trajectory.instruction
            np.testing.assert_array_equal(rows.images[row], trajectory.images[step])
            np.testing.assert_array_equal(rows.token_ids[row], trajectory.token_ids[step])
            np.testing.assert_array_equal(rows.old_logprobs[row], trajectory.logprobs[step])
            for token in range(NUM_TOKENS):
                played = token // ACTION_DIM < trajectory.num_steps[step]
                assert rows.advantages[row, token] == advantage
                assert rows.weights[row, token] == pytest.approx(weight if played else 0)
            row += 1
    assert row == len(rows)


@pytest.mark.parametrize("aggregation", ["seq-mean-token-mean", "token-mean"])
def test_weights_of_a_mini_batchs_rows_sum_to_one(aggregation: str) -> None:
    trajectories = make_trajectories()
    num_tokens = torch.tensor([trajectory.length * ACTION_DIM for trajectory in trajectories])
    weights = token_weights(num_tokens, aggregation=aggregation)  # type: ignore[arg-type]
    rows = make_rows(trajectories, torch.zeros(3), weights, **SHAPE)
    assert rows.weights.sum() == pytest.approx(1)
    assert np.count_nonzero(rows.weights) == int(num_tokens.sum())


def test_selected_rows_keep_their_identity() -> None:
    rows = make_rows(make_trajectories(), torch.zeros(3), torch.ones(3), **SHAPE)
    some = select_rows(rows, np.array([5, 0]))
    assert some.instructions == (rows.instructions[5], rows.instructions[0])
    np.testing.assert_array_equal(some.images, rows.images[[5, 0]])
    assert len(select_rows(rows, slice(4, 99))) == len(rows) - 4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: replace(t, token_ids=t.token_ids[:, :-1]), "tokens do not fit"),
        (lambda t: replace(t, images=t.images[:, :2]), r"images of \(2, 4, 3\) beside images of \(4, 4, 3\)"),
        (lambda t: replace(t, logprobs=np.full_like(t.logprobs, np.nan)), "are not finite"),
    ],
)
def test_a_trajectory_that_does_not_fit_is_refused_by_name(change, message: str) -> None:
    first, second, _ = make_trajectories()
    with pytest.raises(ValueError, match=message) as error:
        make_rows([first, change(second)], torch.zeros(2), torch.ones(2), **SHAPE)
    assert "group_id=1" in str(error.value)
