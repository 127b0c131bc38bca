"""An env made and reset once, to see that it can be: what takes longest to find out is what a first episode needs."""

import queue
from dataclasses import replace
from typing import Self

from vla_train.config import EnvConfig
from vla_train.envs.worker import START_TIMEOUT_S, Event, Reset, WorkerError, WorkerFault
from vla_train.envs.workers import make_workers
from vla_train.types import EpisodeSpec


class TriedEnv:
    """One slot of an env, where the workers of a run would have it; a context manager, which closes it.

    Args:
        config: The env; of its workers, only their kind counts.
        chunk_size: K.

    Raises:
        EnvRefusal, ImportError, WorkerError: As for `make_workers`.
    """

    def __init__(self, config: EnvConfig, *, chunk_size: int) -> None:
        (self._worker,) = make_workers(replace(config, num_workers=1, envs_per_worker=1), chunk_size=chunk_size)
        self.description = self._worker.description

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._worker.close()

    def begin(self, episode: EpisodeSpec) -> None:
        """Begin an episode.

        Raises:
            ValueError, ImportError: The env refuses it, or lacks something that it needs.
            WorkerError: It failed otherwise, or did not answer; an env's bug is the error's cause.
        """
        events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self._worker.connect(events.put)
        self._worker.send(Reset(slots=(0,), specs=(episode,), keys=()))
        try:
            event = events.get(timeout=START_TIMEOUT_S)
        except queue.Empty:
            raise WorkerError(f"{self._worker.config.id} did not begin an episode within {START_TIMEOUT_S:.0f} s") from None
        if isinstance(event.content, WorkerFault):
            error = event.content.error
            if isinstance(error, ValueError | ImportError):
                raise error
            raise WorkerError(f"{self._worker.config.id} failed in its first reset: {type(error).__name__}: {error}") from error
