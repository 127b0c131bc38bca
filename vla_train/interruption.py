"""Ctrl-C and SIGTERM as one exception, raised only where a run can be saved.

Invariant: inside `deferred` the first signal waits for the block's end, and the second one breaks it off; elsewhere a signal
raises at once.
"""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


class Interrupted(KeyboardInterrupt):
    """The user or the machine asks the run to end."""


class Interruption:
    """Turns SIGINT and SIGTERM into `Interrupted` while its `watch` block runs.

    Args:
        on_deferred: Told when a signal has to wait.
    """

    def __init__(self, on_deferred: Callable[[], None]) -> None:
        self._on_deferred = on_deferred
        self._deferring = False
        self._pending = False
        self.broke_off = False
        """Whether a second signal broke off a deferred block."""

    @contextmanager
    def watch(self) -> Iterator[None]:
        """Handle the signals; in another thread than the main one, where Python allows no handlers, do nothing."""
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
    def deferred(self) -> Iterator[None]:
        """A block that should not be broken off: a signal during it raises at its end."""
        self._deferring = True
        try:
            yield
        finally:
            self._deferring = False
            pending, self._pending = self._pending, False
        if pending:
            raise Interrupted

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._deferring and not self._pending:
            self._pending = True
            self._on_deferred()
            return
        self.broke_off = self._deferring
        raise Interrupted
