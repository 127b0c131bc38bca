"""From samples to rows that the trainer takes: images read and varied, chunks as the policy's own decisions.

R rows of a step over all ranks, of which each rank makes its share. Threads share a rank's, since pictures are decoded outside
of Python's lock.
"""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np

from vla_train.policy.base import SupervisedPolicy
from vla_train.sft.augmentation import augment_rows, draws
from vla_train.sft.config import SftConfig
from vla_train.sft.samples import Demonstrations, chunk_targets, samples_of_step
from vla_train.trainer.parallel import Ranks
from vla_train.types import INSTRUCTION, TrainBatch

_STATE = "state"
_MOST_THREADS = 8
_ROWS_AT_ONCE = 16
"""Rows that a thread reads at a time."""


class BatchMaker:
    """Makes the rows of training steps and of validations.

    Args:
        config: How many rows, how they vary, what their labels are.
        data: Demonstrations as the env would observe and play them.
        policy: Says what it reads, and how it would have decided an action.
        train: (N, 2) episode and step of each sample.
        validation: The same, of what is never trained on.
        ranks: Who makes the others.
    """

    def __init__(
        self,
        config: SftConfig,
        *,
        data: Demonstrations,
        policy: SupervisedPolicy,
        train: np.ndarray,
        validation: np.ndarray,
        ranks: Ranks,
    ) -> None:
        self._config = config
        self._data = data
        self._policy = policy
        self._keys = [key for key in policy.observation_keys if key != INSTRUCTION]
        self._train = train
        self._validation = validation
        self._ranks = ranks
        self._threads = ThreadPoolExecutor(min(_MOST_THREADS, os.cpu_count() or 1), thread_name_prefix="pictures")

    def close(self) -> None:
        """End the threads that read pictures."""
        self._threads.shutdown(cancel_futures=True)

    def of_step(self, step: int) -> TrainBatch:
        """This rank's rows of a training step (0, 1, ...)."""
        config = self._config
        numbers = samples_of_step(step, num_samples=len(self._train), batch_rows=config.batch_rows, seed=config.seed)
        return self._rows(self._train[numbers], step=step)

    def of_validation(self) -> TrainBatch | None:
        """This rank's rows of a validation, the same each time: spread over all samples, not varied; None without any."""
        size = self._ranks.size
        count = min(self._config.validation_rows, len(self._validation)) // size * size
        chosen = np.linspace(0, len(self._validation) - 1, count).round().astype(int)
        return self._rows(self._validation[chosen], step=None) if count else None

    def _rows(self, places: np.ndarray, *, step: int | None) -> TrainBatch:
        """This rank's share of R rows, given their (R, 2) places; varied as a training step's where there is one."""
        chunk_size = self._policy.chunk_size
        share = len(places) // self._ranks.size
        first = self._ranks.rank * share
        lengths = np.array([self._data.episodes[episode].length for episode, _ in places])
        counted = np.ones((len(places), chunk_size), bool)
        if self._config.padding == "ignore":
            counted = places[:, 1:] + np.arange(chunk_size) < lengths[:, None]
        own = slice(first, first + share)
        mine = places[own]
        actions = [chunk_targets(self._data.actions(int(episode)), [at], chunk_size=chunk_size)[0] for episode, at in mine]
        return TrainBatch(
            observations=self._observations(mine, step=step, first_row=first),
            instructions=tuple(self._data.episodes[episode].task for episode, _ in mine),
            decisions=self._policy.targets(np.stack(actions), label_step=self._config.label_step),
            advantages=np.ones(share, np.float32),
            weights=(counted[own] / counted.sum()).astype(np.float32),
        )

    def _observations(self, places: np.ndarray, *, step: int | None, first_row: int) -> dict[str, np.ndarray]:
        """What the policy reads at (n, 2) places, which are rows `first_row`, ... of all ranks'; varied if it is of a step."""
        blocks = np.array_split(places, -(-len(places) // _ROWS_AT_ONCE))
        observations = {
            key: np.concatenate(list(self._threads.map(partial(self._observed, key), blocks))) for key in self._keys
        }
        return observations if step is None else self._varied(observations, step=step, first_row=first_row)

    def _observed(self, key: str, places: np.ndarray) -> np.ndarray:
        """(n, ...) what the policy reads under a key at these places; rows of one episode are read together."""
        parts: list[np.ndarray] = [np.empty(0)] * len(places)
        for episode in np.unique(places[:, 0]):
            rows = np.flatnonzero(places[:, 0] == episode)
            for row, array in zip(rows, self._read(key, int(episode), places[rows, 1]), strict=True):
                parts[row] = array
        return np.stack(parts)

    def _read(self, key: str, episode: int, steps: np.ndarray) -> Sequence[np.ndarray] | np.ndarray:
        if key != _STATE:
            return self._data.images(episode, key, steps)
        states = self._data.states(episode)
        assert states is not None, "a policy that reads the state was accepted for data without one"
        return states[steps]

    def _varied(self, observations: dict[str, np.ndarray], *, step: int, first_row: int) -> dict[str, np.ndarray]:
        """With the images of a training step's rows varied; rows are numbered over all ranks."""
        config = self._config
        keys = [key for key in observations if key != _STATE]
        numbers = draws(config.seed, step, rows=config.batch_rows, images=len(keys))
        varied = {
            key: augment_rows(
                observations[key],
                numbers[first_row : first_row + len(observations[key]), image],
                config.augment,
                crop_area=self._policy.crop_area,
            )
            for image, key in enumerate(keys)
        }
        return observations | varied
