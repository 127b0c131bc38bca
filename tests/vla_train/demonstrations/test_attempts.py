"""Which attempts are made, and in which order their results are taken."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vla_train.demonstrations.attempts import Attempt, Attempts, attempt, initial_states
from vla_train.demonstrations.config import CollectConfig
from vla_train.pipeline.episodes import split_initial_states

TASKS = {4: np.arange(5), 9: np.arange(3)}


def succeeds(made: Attempt, outcomes: int) -> bool:
    """A fixed outcome of every attempt: a bit of a number."""
    return bool(outcomes >> (made.number + 8 * made.spec.task_id % 13) & 1)


def make_all(
    config: CollectConfig,
    outcomes: int,
    *,
    at_once: int,
    order: np.random.Generator,
    done: dict[int, list[tuple[int, bool]]] | None = None,
    stop_after: int | None = None,
) -> tuple[list[Attempt], list[Attempt]]:
    """Attempts in the order they were begun, and in which their results were taken."""
    attempts: Attempts[Attempt] = Attempts(TASKS, config, done=done or {})
    begun: list[Attempt] = []
    taken: list[Attempt] = []
    under_way: list[Attempt] = []
    while not all(task.complete for task in attempts.tasks):
        while len(under_way) < at_once and (following := attempts.begin()):
            under_way.append(following)
            begun.append(following)
        made = under_way.pop(int(order.integers(len(under_way))))
        taken += attempts.finish(made, made, succeeded=succeeds(made, outcomes))
        if stop_after is not None and len(taken) >= stop_after:
            break
    return begun, taken


@given(
    outcomes=st.integers(0, 2**24 - 1),
    wanted=st.integers(1, 4),
    at_once=st.integers(1, 6),
    seed=st.integers(0, 99),
    stop_after=st.integers(1, 12),
)
def test_neither_order_nor_number_nor_an_interruption_changes_what_is_taken(
    outcomes: int, wanted: int, at_once: int, seed: int, stop_after: int
):
    config = CollectConfig(episodes_per_task=wanted, max_attempts=2)
    order = np.random.default_rng(seed)
    alone, expected = make_all(config, outcomes, at_once=1, order=order)
    assert alone == expected
    begun, taken = make_all(config, outcomes, at_once=at_once, order=order)
    assert taken == expected
    assert {(made.spec.task_id, made.number) for made in begun} == {(made.spec.task_id, made.number) for made in alone}

    _, first = make_all(config, outcomes, at_once=at_once, order=order, stop_after=stop_after)
    kept: dict[int, list[tuple[int, bool]]] = {}
    for made in first:
        if succeeds(made, outcomes):
            kept.setdefault(made.spec.task_id, []).append((made.number, True))
    _, rest = make_all(config, outcomes, at_once=at_once, order=order, done=kept)
    good = [made for made in expected if succeeds(made, outcomes)]
    already = [made for made in first if succeeds(made, outcomes)]
    assert already + [made for made in rest if succeeds(made, outcomes)] == good


def test_a_task_ends_with_its_last_success_or_its_last_attempt():
    config = CollectConfig(episodes_per_task=2, max_attempts=2.5)
    _, taken = make_all(config, 0, at_once=3, order=np.random.default_rng(0))
    assert [made.number for made in taken if made.spec.task_id == 4] == [0, 1, 2, 3, 4]
    _, taken = make_all(config, 2**24 - 1, at_once=3, order=np.random.default_rng(0))
    assert [made.number for made in taken] == [0, 1, 0, 1]


def test_each_initial_state_comes_once_before_any_comes_again():
    states = np.array([3, 5, 8, 9])
    chosen = [attempt(7, number, states=states, seed=1).spec.init_state_id for number in range(12)]
    for begin in (0, 4, 8):
        assert sorted(chosen[begin : begin + 4]) == [3, 5, 8, 9]
    seeds = [attempt(7, number, states=states, seed=1).spec.seed for number in range(12)]
    assert len(set(seeds)) == 12
    assert attempt(7, 3, states=states, seed=1) == attempt(7, 3, states=states, seed=1)


def test_states_are_those_of_the_split_that_training_makes():
    train, held_out = split_initial_states(7, 50, train_fraction=0.8, split_seed=3)
    config = {"train_fraction": 0.8, "split_seed": 3}
    np.testing.assert_array_equal(initial_states(7, 50, CollectConfig(**config)), train)
    np.testing.assert_array_equal(initial_states(7, 50, CollectConfig(**config, initial_states="held-out")), held_out)
    np.testing.assert_array_equal(initial_states(7, 50, CollectConfig(**config, initial_states="all")), np.arange(50))
    np.testing.assert_array_equal(initial_states(7, None, CollectConfig(**config)), [-1])


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"episodes_per_task": 0}, "episodes_per_task must be at least 1"),
        ({"max_attempts": 0.5}, "max_attempts must be at least 1"),
        ({"noise": 1.5}, r"noise must lie in \[0, 1\]"),
        ({"noise": float("nan")}, "noise must be finite"),
        ({"train_fraction": 1.0, "initial_states": "held-out"}, "leaves no held-out initial states"),
        ({"workers": 0}, "workers must be auto or at least 1"),
        ({"task_ids": (1, 1)}, "task_ids must differ"),
        ({"expert": "nowhere"}, "expert must be MODULE:FUNCTION"),
    ],
)
def test_options_that_cannot_work_are_refused_by_name(changes: dict, named: str):
    with pytest.raises(ValueError, match=named):
        CollectConfig(**changes)
