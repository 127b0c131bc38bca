"""From trajectories to rows: each is trained on once, in mini-batches of nearly equal size, and only where it was played."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from small_policy import CHUNK_SIZE, SmallPolicy, make_trajectory

from vla_train.algo.weights import action_weights
from vla_train.trainer.batching import make_rows, plan_minibatches
from vla_train.types import Trajectory

SHAPE = {"chunk_size": CHUNK_SIZE}


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
            np.testing.assert_array_equal(rows.observations["image"][row], trajectory.observations["image"][step])
            np.testing.assert_array_equal(rows.decisions["token_ids"][row], trajectory.decisions["token_ids"][step])
            np.testing.assert_array_equal(rows.decisions["logprobs"][row], trajectory.decisions["logprobs"][step])
            assert rows.advantages[row] == advantage
            for action in range(CHUNK_SIZE):
                assert rows.weights[row, action] == pytest.approx(weight if action < trajectory.num_steps[step] else 0)
            row += 1
    assert row == len(rows)


@pytest.mark.parametrize("aggregation", ["seq-mean-token-mean", "token-mean"])
def test_weights_of_a_mini_batchs_rows_sum_to_one(aggregation: str) -> None:
    trajectories = make_trajectories()
    num_actions = torch.tensor([trajectory.length for trajectory in trajectories])
    weights = action_weights(num_actions, aggregation=aggregation)  # type: ignore[arg-type]
    rows = make_rows(trajectories, torch.zeros(3), weights, **SHAPE)
    assert rows.weights.sum() == pytest.approx(1)
    assert np.count_nonzero(rows.weights) == int(num_actions.sum())


def test_selected_rows_keep_their_identity() -> None:
    rows = make_rows(make_trajectories(), torch.zeros(3), torch.ones(3), **SHAPE)
    some = rows.select(np.array([5, 0]))
    assert some.instructions == (rows.instructions[5], rows.instructions[0])
    np.testing.assert_array_equal(some.observations["image"], rows.observations["image"][[5, 0]])
    assert len(rows.select(slice(4, 99))) == len(rows) - 4


def with_decision(trajectory: Trajectory, **arrays: np.ndarray) -> Trajectory:
    return replace(trajectory, decisions={**trajectory.decisions, **arrays})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: with_decision(t, token_ids=t.decisions["token_ids"][:, :-1]), r"token_ids of shape \(5,\) beside \(6,\)"),
        (lambda t: with_decision(t, token_ids=t.decisions["token_ids"][:-1]), "3 rows of token_ids do not fit 4 decisions"),
        (lambda t: with_decision(t, noise=t.decisions["logprobs"]), "decisions token_ids, logprobs, noise beside"),
        (lambda t: with_decision(t, logprobs=np.full_like(t.decisions["logprobs"], np.nan)), "logprobs kept .* not finite"),
        (
            lambda t: replace(t, observations={"image": t.observations["image"][:, :2]}),
            r"image of shape \(2, 4, 3\) beside \(4, 4, 3\)",
        ),
        (lambda t: replace(t, num_steps=t.num_steps + CHUNK_SIZE), "do not fit chunks of 3"),
    ],
)
def test_a_trajectory_that_does_not_fit_is_refused_by_name(change, message: str) -> None:
    first, second, _ = make_trajectories()
    with pytest.raises(ValueError, match=message) as error:
        make_rows([first, change(second)], torch.zeros(2), torch.ones(2), **SHAPE)
    assert "group_id=1" in str(error.value)
