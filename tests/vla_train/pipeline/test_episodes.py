"""Training prompts and evaluation episodes: disjoint where they should be, complete, and a function of the seed."""

import itertools
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vla_train.config import EvalConfig
from vla_train.pipeline.episodes import PromptStream, evaluation_episodes, split_initial_states
from vla_train.types import EpisodeSpec

TASKS = {0: 10, 3: 5, 7: 1}


def make_stream(**changes) -> PromptStream:
    arguments = {
        "task_ids": [0, 3, 7],
        "num_init_states": TASKS,
        "group_size": 3,
        "train_fraction": 0.8,
        "split_seed": 5,
        "seed": 5,
        **changes,
    }
    return PromptStream(arguments.pop("task_ids"), arguments.pop("num_init_states"), **arguments)


def make_evaluation(
    tasks: dict[int, int] | None = None, *, task_ids=(0, 3, 7), seed: int = 5, fraction=0.8, temperature=0.0, **config
):
    states = TASKS if tasks is None else tasks
    return evaluation_episodes(
        task_ids, states, EvalConfig(**config), temperature=temperature, train_fraction=fraction, split_seed=seed
    )


def starts(specs: list[EpisodeSpec]) -> list[tuple[int, int]]:
    return [(spec.task_id, spec.init_state_id) for spec in specs]


@given(num_states=st.integers(1, 60), fraction=st.floats(0.01, 1.0), seed=st.integers(0, 9), task_id=st.integers(0, 129))
def test_a_split_is_disjoint_complete_sorted_and_repeatable(num_states: int, fraction: float, seed: int, task_id: int) -> None:
    train, held_out = split_initial_states(task_id, num_states, train_fraction=fraction, split_seed=seed)
    assert sorted([*train, *held_out]) == list(range(num_states))
    assert list(train) == sorted(train)
    assert list(held_out) == sorted(held_out)
    again = split_initial_states(task_id, num_states, train_fraction=fraction, split_seed=seed)
    np.testing.assert_array_equal(train, again[0])
    if num_states >= 2:
        assert len(train) >= 1
        assert (len(held_out) >= 1) == (fraction < 1)


def test_a_split_takes_the_share_it_is_asked_for() -> None:
    train, held_out = split_initial_states(0, 50, train_fraction=0.8, split_seed=0)
    assert (len(train), len(held_out)) == (40, 10)


def test_another_seed_or_task_splits_differently() -> None:
    splits = [
        split_initial_states(task_id, 50, train_fraction=0.8, split_seed=seed)[1].tolist()
        for task_id in (0, 1)
        for seed in (0, 1)
    ]
    assert all(one != other for one, other in itertools.combinations(splits, 2))


def test_each_pass_plays_every_training_state_once_in_an_order_of_its_own() -> None:
    expected = {
        (task_id, int(state))
        for task_id, count in TASKS.items()
        for state in split_initial_states(task_id, count, train_fraction=0.8, split_seed=5)[0]
    }
    stream = make_stream()
    passes = [[starts(next(stream))[0] for _ in expected] for _ in range(3)]
    for one in passes:
        assert set(one) == expected
        assert len(one) == len(expected)
    assert passes[0] != passes[1] != passes[2]


def test_a_prompt_is_a_group_of_samples_that_share_everything_but_their_number() -> None:
    for group_id, prompt in enumerate(itertools.islice(make_stream(), 20)):
        assert [spec.sample_id for spec in prompt] == [0, 1, 2]
        assert {spec.group_id for spec in prompt} == {group_id}
        assert len({(spec.task_id, spec.init_state_id, spec.seed) for spec in prompt}) == 1


@pytest.mark.parametrize("counter", [1, 11, 12, 40])
def test_a_stream_goes_on_from_its_counter(counter: int) -> None:
    stream = make_stream()
    skipped = list(itertools.islice(stream, counter))
    assert stream.next_group_id == counter == len(skipped)
    assert list(itertools.islice(stream, 15)) == list(itertools.islice(make_stream(next_group_id=counter), 15))


def test_another_seed_gives_another_stream() -> None:
    first, other = (list(itertools.islice(make_stream(seed=seed, num_init_states={}), 8)) for seed in (0, 1))
    assert [p[0].seed for p in first] != [p[0].seed for p in other]
    assert starts([p[0] for p in first]) != starts([p[0] for p in other])


def test_an_env_without_stored_states_gets_a_new_seed_for_every_prompt_and_all_tasks_in_turn() -> None:
    stream = make_stream(num_init_states={})
    prompts = [next(stream)[0] for _ in range(30)]
    assert {spec.init_state_id for spec in prompts} == {-1}
    assert len({spec.seed for spec in prompts}) == 30
    assert Counter(spec.task_id for spec in prompts) == {0: 10, 3: 10, 7: 10}


def test_no_training_seed_is_ever_an_evaluation_seed() -> None:
    stream = make_stream(num_init_states={})
    trained = {next(stream)[0].seed for _ in range(200)}
    evaluated = {spec.seed for spec in make_evaluation({}, episodes_per_task=50)}
    assert len(evaluated) == 50
    assert max(trained) < min(evaluated)


def test_nothing_left_to_train_on_is_an_error() -> None:
    with pytest.raises(ValueError, match="train_fraction"):
        make_stream(task_ids=[0], num_init_states={0: 3}, train_fraction=0.0)


def test_evaluation_plays_every_held_out_state_of_every_task_once() -> None:
    tasks = {0: 10, 3: 5}
    specs = make_evaluation(tasks, task_ids=[0, 3], episodes_per_task=0)
    expected = [
        (task_id, int(state))
        for task_id, count in tasks.items()
        for state in split_initial_states(task_id, count, train_fraction=0.8, split_seed=5)[1]
    ]
    assert sorted(starts(specs)) == sorted(expected)


@pytest.mark.parametrize(("initial_states", "side"), [("train", 0), ("held-out", 1)])
def test_evaluation_may_be_asked_for_either_side_of_the_split(initial_states: str, side: int) -> None:
    specs = make_evaluation({0: 10}, task_ids=[0], episodes_per_task=0, initial_states=initial_states)
    expected = split_initial_states(0, 10, train_fraction=0.8, split_seed=5)[side]
    assert [spec.init_state_id for spec in specs] == expected.tolist()


def test_evaluation_on_all_states_ignores_the_split() -> None:
    specs = make_evaluation(episodes_per_task=0, initial_states="all", fraction=1.0)
    assert Counter(spec.task_id for spec in specs) == TASKS


def test_tasks_are_interleaved_so_that_an_early_look_sees_all_of_them() -> None:
    specs = make_evaluation(episodes_per_task=0, initial_states="all")
    assert [spec.task_id for spec in specs] == [0, 3, 7] + [0, 3] * 4 + [0] * 5


def test_fewer_episodes_per_task_are_the_first_ones() -> None:
    few = make_evaluation(episodes_per_task=2, initial_states="all")
    assert Counter(spec.task_id for spec in few) == {0: 2, 3: 2, 7: 1}
    assert set(starts(few)) <= set(starts(make_evaluation(episodes_per_task=0, initial_states="all")))


def test_all_states_of_an_env_that_stores_none_is_an_error() -> None:
    with pytest.raises(ValueError, match="episodes_per_task"):
        make_evaluation({}, episodes_per_task=0)


def test_a_task_with_nothing_held_out_is_an_error_that_names_it() -> None:
    with pytest.raises(ValueError, match="task 7"):
        make_evaluation(episodes_per_task=0)


def test_sampled_episodes_beyond_the_number_of_states_begin_again_and_greedy_ones_do_not() -> None:
    asked = {"tasks": {0: 3}, "task_ids": [0], "episodes_per_task": 7, "initial_states": "all"}
    sampled = make_evaluation(temperature=1.0, **asked)
    assert [(spec.init_state_id, spec.sample_id) for spec in sampled] == [
        (0, 0),
        (1, 0),
        (2, 0),
        (0, 1),
        (1, 1),
        (2, 1),
        (0, 2),
    ]
    assert len({(spec.group_id, spec.sample_id) for spec in sampled}) == 7
    assert make_evaluation(temperature=0.0, **asked) == sampled[:3]
    assert make_evaluation(temperature=1.0, **{**asked, "episodes_per_task": 0}) == sampled[:3]


def test_what_an_evaluation_draws_is_neither_drawn_in_training_nor_for_another_start() -> None:
    evaluated = make_evaluation({0: 50, 1: 50}, task_ids=[0, 1], episodes_per_task=0, initial_states="all")
    assert len({spec.group_id for spec in evaluated}) == 100
    assert min(spec.group_id for spec in evaluated) >= 1 << 40, "a run never has as many prompts"
