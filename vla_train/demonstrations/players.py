"""Players side by side: each in a process of its own, or a single one in this process.

A process ends with its parent, however that ended, and leaves Ctrl-C to it.
"""

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import wait as wait_for_end
from typing import Protocol

from vla_train.demonstrations.attempts import Attempt
from vla_train.demonstrations.config import CollectConfig
from vla_train.demonstrations.player import Played, Player
from vla_train.errors import RunError


class Players(Protocol):
    """Takes attempts and gives back what came of them, in any order."""

    @property
    def is_free(self) -> bool:
        """Whether another attempt would not have to wait."""
        ...

    def begin(self, attempt: Attempt) -> None:
        """Have it played."""
        ...

    def finished(self) -> Iterator[tuple[Attempt, Played]]:
        """Wait until at least one attempt has been played, and give back all that have.

        Raises:
            RunError: A process was lost.
            Exception: What the env or the expert raised.
        """
        ...

    def close(self) -> None:
        """End all processes; what is under way is played to its end first."""
        ...


class OwnPlayer:
    """Plays in this process, when results are asked for.

    Args:
        player: It is closed in the end.
    """

    def __init__(self, player: Player) -> None:
        self._player = player
        self._attempt: Attempt | None = None

    @property
    def is_free(self) -> bool:
        return self._attempt is None

    def begin(self, attempt: Attempt) -> None:
        assert self._attempt is None
        self._attempt = attempt

    def finished(self) -> Iterator[tuple[Attempt, Played]]:
        attempt, self._attempt = self._attempt, None
        assert attempt is not None
        yield attempt, self._player.play(attempt)

    def close(self) -> None:
        self._player.close()


class ProcessPlayers:
    """One player in each of several processes.

    Args:
        config: As for `Player`.
        num_processes: How many.
    """

    def __init__(self, config: CollectConfig, num_processes: int) -> None:
        context = multiprocessing.get_context("spawn")
        self._pool = ProcessPoolExecutor(num_processes, mp_context=context, initializer=_set_up, initargs=(config,))
        self._num_processes = num_processes
        self._under_way: dict[Future[Played], Attempt] = {}

    @property
    def is_free(self) -> bool:
        return len(self._under_way) < self._num_processes + 1  # the next one is at hand when a process is done

    def begin(self, attempt: Attempt) -> None:
        try:
            self._under_way[self._pool.submit(_play, attempt)] = attempt
        except BrokenProcessPool as error:
            raise _lost() from error

    def finished(self) -> Iterator[tuple[Attempt, Played]]:
        done, _ = wait(self._under_way, return_when=FIRST_COMPLETED)
        for future in done:
            attempt = self._under_way.pop(future)
            try:
                played = future.result()
            except BrokenProcessPool as error:
                raise _lost() from error
            yield attempt, played

    def close(self) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)


def _lost() -> RunError:
    return RunError(
        "a process that plays has ended by itself (killed, or out of memory? --workers 1 needs least); the same command goes on"
    )


_config: CollectConfig
_player: Player | None = None
"""Of a process that plays."""


def _set_up(config: CollectConfig) -> None:
    global _config
    _config = config
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    threading.Thread(target=_end_with_parent, name="end-with-parent", daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait_for_end([parent.sentinel])
    os._exit(1)


def _play(attempt: Attempt) -> Played:
    global _player
    if _player is None:
        _player = Player(_config)
    return _player.play(attempt)
