"""Which states are learnt from, and in which order; and the rows that a training step makes of them.

Invariant: the rows of a step are a function of the data, the seed and the step alone; ranks share them evenly.

N samples, R rows of a step, K actions of a chunk, A numbers of an action, T steps of an episode.
"""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Protocol

import numpy as np

from vla_train.demonstrations.description import DemonstratedEpisode
from vla_train.pipeline.episodes import split_initial_states

_ORDER_STREAM, _VALIDATION_STREAM = 12, 13
"""Keep these random numbers apart from others that are drawn from the run's seed."""


class Demonstrations(Protocol):
    """What is learnt from: `DemonstrationDataset`, as the env would give it."""

    episodes: tuple[DemonstratedEpisode, ...]

    def actions(self, episode: int) -> np.ndarray:
        """(T, A) float32 in the env's own units."""
        ...

    def states(self, episode: int) -> np.ndarray | None:
        """(T, D) float32 as the env observes them."""
        ...

    def images(self, episode: int | np.ndarray, key: str, steps: Sequence[int] | np.ndarray) -> np.ndarray:
        """(n, H, W, 3) uint8 as the env observes them: of one episode, or of n, one for each step."""
        ...


def split_episodes(
    episodes: Sequence[DemonstratedEpisode],
    num_init_states: Mapping[int, int],
    *,
    train_fraction: float,
    split_seed: int,
    validation_fraction: float,
    seed: int,
) -> tuple[list[int], list[int]]:
    """Indices of the episodes to train on, and of those for validation; failures are in neither.

    Initial states that a GRPO run of the same `split_seed` and `train_fraction` holds out are never trained on: their
    episodes are those for validation. Without any, `validation_fraction` of the others are, at least one where there are two.
    """
    train: list[int] = []
    validation: list[int] = []
    for episode in episodes:
        if episode.success is False:
            continue
        held_out: Sequence[int] = ()
        task_id = episode.task_id
        if task_id is not None and task_id in num_init_states:
            num_states = num_init_states[task_id]
            _, states = split_initial_states(task_id, num_states, train_fraction=train_fraction, split_seed=split_seed)
            held_out = states.tolist()
        (validation if episode.init_state_id in held_out else train).append(episode.index)
    if not validation and validation_fraction > 0 and len(train) > 1:
        count = min(max(1, round(validation_fraction * len(train))), len(train) - 1)
        chosen = np.random.default_rng([seed, _VALIDATION_STREAM]).permutation(len(train))[:count]
        validation = [train[index] for index in sorted(chosen)]
        train = [index for index in train if index not in set(validation)]
    return train, validation


def sample_places(episodes: Sequence[DemonstratedEpisode], chosen: Sequence[int], *, stride: int) -> np.ndarray:
    """(N, 2) int64: episode and step of every sample of the chosen episodes."""
    places = [(index, step) for index in chosen for step in range(0, episodes[index].length, stride)]
    return np.array(places, np.int64).reshape(-1, 2)


def samples_of_step(step: int, *, num_samples: int, batch_rows: int, seed: int) -> np.ndarray:
    """(R,) numbers of the samples of a training step: every one comes once per pass, in a fresh order each pass."""
    positions = np.arange(step * batch_rows, (step + 1) * batch_rows)
    passes, places = np.divmod(positions, num_samples)
    return np.array([_order(int(number), num_samples, seed)[place] for number, place in zip(passes, places, strict=True)])


@lru_cache(maxsize=2)
def _order(number: int, num_samples: int, seed: int) -> np.ndarray:
    return np.random.default_rng([seed, number, _ORDER_STREAM]).permutation(num_samples)


def chunk_targets(actions: np.ndarray, steps: Sequence[int] | np.ndarray, *, chunk_size: int) -> np.ndarray:
    """The chunks that follow some states of an episode; the action of the state itself comes first.

    Args:
        actions: (T, A).
        steps: n of them.
        chunk_size: K.

    Returns:
        (n, K, A) actions, the last one repeated beyond the end.
    """
    wanted = np.asarray(steps)[:, None] + np.arange(chunk_size)
    return actions[np.minimum(wanted, len(actions) - 1)]
