"""From samples to rows that the trainer takes: images read and varied, chunks as the policy's own decisions.

R rows of a step over all ranks, of which each rank makes its share. Threads share a rank's, since pictures are decoded outside
of Python's lock.
"""

import os
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
        images = [key for key in self._keys if key != _STATE]
        varied = None
        if step is not None:
            numbers = draws(self._config.seed, step, rows=self._config.batch_rows, images=len(images))
            varied = dict(zip(images, numbers[first_row : first_row + len(places)].swapaxes(0, 1), strict=True))
        blocks = [slice(first, first + _ROWS_AT_ONCE) for first in range(0, len(places), _ROWS_AT_ONCE)]

        def read(key: str, block: slice) -> np.ndarray:
            if key == _STATE:
                return self._states(places[block])
            frames = self._data.images(places[block, 0], key, places[block, 1])
            if varied is None:
                return frames
            return augment_rows(frames, varied[key][block], self._config.augment, crop_area=self._policy.crop_area)

        return {key: np.concatenate(list(self._threads.map(partial(read, key), blocks))) for key in self._keys}

    def _states(self, places: np.ndarray) -> np.ndarray:
        """(n, D) at (n, 2) places."""
        rows = []
        for episode, step in places.tolist():
            states = self._data.states(episode)
            assert states is not None, "a policy that reads the state was accepted for data without one"
            rows.append(states[step])
        return np.stack(rows)
