"""Ctrl-C and SIGTERM as one exception, raised only where a run can be saved.

Invariant: the first signal raises inside an `allowed` block, whose work can be done again. Elsewhere it waits for the next
such block or `check`. The second signal raises at once, wherever it comes.
"""

import _thread
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


class Interrupted(KeyboardInterrupt):
    """The user or the machine asks the run to end. Ray turns it into a plain `KeyboardInterrupt`: catch that one."""


class Interruption:
    """Turns SIGINT and SIGTERM into `Interrupted` while its `watch` block runs.

    Args:
        on_wait: Told when a signal has to wait; in a thread of its own.
    """

    def __init__(self, on_wait: Callable[[], None]) -> None:
        self._on_wait = on_wait
        self._asked = False
        self._allowed = False
        self.broke_off = False
        """Whether a second signal broke off what the first one had waited for."""

    @contextmanager
    def watch(self) -> Iterator[None]:
        """Handle the signals while the block runs. Only the main thread can: in any other, this does nothing."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self._handle) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    @contextmanager
    def allowed(self) -> Iterator[None]:
        """A block that a signal may break off. Signals reach the main thread only: in any other, this does nothing."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        self._allowed = True
        try:
            self.check()
            yield
        finally:
            self._allowed = False
        self.check()

    def check(self) -> None:
        """Raise `Interrupted` if a signal waits."""
        if self._asked:
            raise Interrupted

    def _handle(self, number: int, frame: FrameType | None) -> None:
        again, self._asked = self._asked, True
        if self._allowed:
            raise Interrupted
        if again:
            self.broke_off = True
            raise Interrupted
        _thread.start_new_thread(self._on_wait, ())  # not here: the signal may have interrupted a print
