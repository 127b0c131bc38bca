"""Ctrl-C and SIGTERM as one exception, raised only where a run can be saved.

Invariant: the first signal raises inside an `allowed` block, whose work can be done again. Elsewhere it waits for the next
such block or `check`. The second signal raises at once, wherever it comes.

On several ranks a signal to one is told to all (`on_ask`, `ask`), and signals that come together are one: torchrun and SLURM
pass on what a process has got already.
"""

import _thread
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

_TOGETHER_S = 2.0
"""Signals on several ranks that are no further apart are one."""
_WAKE = signal.SIGUSR1
"""Wakes the main thread, whatever it waits for."""


class Interrupted(KeyboardInterrupt):
    """The user or the machine asks the run to end. Ray turns it into a plain `KeyboardInterrupt`: catch that one."""


class Interruption:
    """Turns SIGINT and SIGTERM into `Interrupted` while its `watch` block runs.

    Args:
        on_wait: Told when a signal has to wait; in a thread of its own.
        on_ask: Tells other ranks; in a thread of its own. None where there are no others.
    """

    def __init__(self, on_wait: Callable[[], None], *, on_ask: Callable[[], None] | None = None) -> None:
        self._on_wait = on_wait
        self._on_ask = on_ask
        self._asked = False
        """By a signal, or by another rank."""
        self._signalled = -math.inf
        """When the first signal came here."""
        self._watched = threading.Lock()
        self._watching = False
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
        if self._on_ask is not None:
            signal.signal(_WAKE, self._woken)
            self._watching = True
        try:
            yield
        finally:
            with self._watched:
                self._watching = False
            if self._on_ask is not None:
                signal.signal(_WAKE, signal.SIG_IGN)  # one may still be on its way
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

    def ask(self) -> None:
        """Another rank asks this one to end. Called from any thread."""
        self._asked = True
        with self._watched:
            if self._watching:
                signal.pthread_kill(threading.main_thread().ident or 0, _WAKE)

    def check(self) -> None:
        """Raise `Interrupted` if a signal waits, or another rank asked."""
        if self._asked:
            raise Interrupted

    def _handle(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        again = self._signalled > -math.inf
        if again and self._on_ask is not None and now - self._signalled < _TOGETHER_S:
            return
        self._asked = True
        if not again:
            self._signalled = now
            if self._on_ask is not None:
                _thread.start_new_thread(self._on_ask, ())
        if self._allowed:
            raise Interrupted
        if again:
            self.broke_off = True
            raise Interrupted
        _thread.start_new_thread(self._on_wait, ())  # not here: the signal may have interrupted a print

    def _woken(self, number: int, frame: FrameType | None) -> None:
        if self._asked and self._allowed:
            raise Interrupted
