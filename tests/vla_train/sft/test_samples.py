"""Which states are learnt from, and in which order."""

from collections import Counter

import numpy as np

from vla_train.demonstrations.description import DemonstratedEpisode
from vla_train.pipeline.episodes import split_initial_states
from vla_train.sft.samples import chunk_targets, sample_places, samples_of_step, split_episodes

SPLIT = {"train_fraction": 0.8, "split_seed": 3, "validation_fraction": 0.25, "seed": 3}


def episode(index: int, **origin) -> DemonstratedEpisode:
    return DemonstratedEpisode(index=index, task="go", length=4 + index, **origin)


def test_states_that_grpo_holds_out_are_for_validation_and_never_trained_on() -> None:
    episodes = [episode(index, task_id=5, init_state_id=index % 10, success=True) for index in range(20)]
    train, validation = split_episodes(episodes, {5: 10}, **SPLIT)
    trained, held_out = split_initial_states(5, 10, train_fraction=0.8, split_seed=3)
    assert {episodes[index].init_state_id for index in train} == set(trained)
    assert {episodes[index].init_state_id for index in validation} == set(held_out)
    assert sorted(train + validation) == list(range(20))


def test_a_share_of_the_episodes_is_for_validation_where_none_is_from_a_held_out_state() -> None:
    episodes = [episode(index) for index in range(8)]
    train, validation = split_episodes(episodes, {}, **SPLIT)
    assert (len(train), len(validation)) == (6, 2)
    assert sorted(train + validation) == list(range(8))
    assert split_episodes(episodes, {}, **SPLIT) == (train, validation)
    assert split_episodes(episodes, {}, **{**SPLIT, "seed": 4}) != (train, validation)
    assert split_episodes(episodes, {}, **{**SPLIT, "validation_fraction": 0.0}) == (list(range(8)), [])
    assert split_episodes(episodes[:1], {}, **SPLIT) == ([0], [])
    assert [len(part) for part in split_episodes(episodes[:2], {}, **{**SPLIT, "validation_fraction": 0.9})] == [1, 1]


def test_failures_are_neither_trained_on_nor_measured() -> None:
    episodes = [episode(0, success=False), episode(1, success=True), episode(2)]
    assert split_episodes(episodes, {}, **{**SPLIT, "validation_fraction": 0.0}) == ([1, 2], [])


def test_every_state_is_a_sample_or_every_second() -> None:
    episodes = [episode(0), episode(1)]
    assert sample_places(episodes, [1, 0], stride=1).tolist() == [[1, s] for s in range(5)] + [[0, s] for s in range(4)]
    assert sample_places(episodes, [1], stride=2).tolist() == [[1, 0], [1, 2], [1, 4]]


def test_every_sample_comes_once_per_pass_in_a_fresh_order() -> None:
    drawn = np.concatenate([samples_of_step(step, num_samples=10, batch_rows=4, seed=0) for step in range(5)])
    first, second = drawn[:10].tolist(), drawn[10:].tolist()
    assert sorted(first) == sorted(second) == list(range(10))
    assert first != second
    assert Counter(drawn.tolist()) == dict.fromkeys(range(10), 2)
    assert not np.array_equal(drawn[:4], samples_of_step(0, num_samples=10, batch_rows=4, seed=1))


def test_chunks_repeat_the_last_action_beyond_the_end() -> None:
    actions = np.arange(8, dtype=np.float32).reshape(4, 2)
    chunks = chunk_targets(actions, [0, 2, 3], chunk_size=3)
    assert chunks[..., 0].tolist() == [[0, 2, 4], [4, 6, 6], [6, 6, 6]]
