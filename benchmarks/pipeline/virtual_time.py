"""Virtual time, for a conductor that runs as it is: what it does takes as long as it takes, what it waits for takes no time.

The conductor reads its clock here and waits here, in the `get` of its inbox, where time jumps to what happens next. Its own
code is neither modelled nor guessed: what it computes from one call of ours to the next is measured (its thread's time on a
core, so that other programs do not count) and passes in virtual time too.
"""

import heapq
import itertools
import queue
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

Happening = Callable[[float], None]
"""Called with the time at which it happens."""


class VirtualTime:
    """Clock and inbox of one conductor.

    Args:
        python: How long the conductor's code takes, as a multiple of what it takes here; 0: no time at all, and nothing is
            measured, so that the same comes out anywhere.
    """

    def __init__(self, *, python: float) -> None:
        self.now = 0.0
        """Virtual seconds since the beginning."""
        self.busy_s = 0.0
        """Those that the conductor's process worked."""
        self._python = python
        self._left_at = time.thread_time()
        self._agenda: list[tuple[float, int, Happening]] = []
        self._numbers = itertools.count()
        self._arrived: deque[tuple[Any, float]] = deque()

    def clock(self) -> float:
        """What the conductor reads."""
        with self.apart():
            return self.now

    @contextmanager
    def conducting(self) -> Iterator[None]:
        """Around calls of the conductor: outside them its process does nothing."""
        self._left_at = time.thread_time()
        yield
        self._pass()

    @contextmanager
    def apart(self) -> Iterator[None]:
        """Around what is ours, called by the conductor: what it did before has passed, what we do takes no time."""
        self._pass()
        yield
        self._left_at = time.thread_time()

    def _pass(self) -> None:
        if self._python:
            self.work(self._python * (time.thread_time() - self._left_at))

    def at(self, when: float, happening: Happening) -> None:
        """Let something happen then."""
        heapq.heappush(self._agenda, (when, next(self._numbers), happening))

    def work(self, seconds: float) -> float:
        """The conductor's process works on something that is not done here, such as a copy or a library's call; until when."""
        self.now += seconds
        self.busy_s += seconds
        return self.now

    def wait_until(self, when: float) -> None:
        """Nobody asks the conductor until then."""
        self.now = max(self.now, when)

    def deliver(self, message: Any, *, work_s: float) -> None:
        """Put a message into the inbox; to take it in is so much work of the conductor's process."""
        self._arrived.append((message, work_s))

    # --- the inbox

    def put(self, message: Any) -> None:
        self.deliver(message, work_s=0.0)

    def get(self, timeout: float) -> Any:
        """The next message.

        Raises:
            queue.Empty: None came within `timeout` virtual seconds.
        """
        with self.apart():
            until = self.now + timeout
            while True:
                while self._agenda and self._agenda[0][0] <= self.now:
                    when, _, happening = heapq.heappop(self._agenda)
                    happening(when)
                if self._arrived:
                    message, work_s = self._arrived.popleft()
                    self.work(work_s)
                    return message
                if not self._agenda or self._agenda[0][0] > until:
                    self.now = until
                    raise queue.Empty
                self.now = self._agenda[0][0]


class Line:
    """Serves one after another, first come, first served: a link, or the cores of a machine."""

    def __init__(self) -> None:
        self.busy_s = 0.0
        self._free_at = 0.0

    def serve(self, arrived: float, seconds: float) -> float:
        """When it is done with what arrived then and takes so long."""
        self._free_at = max(self._free_at, arrived) + seconds
        self.busy_s += seconds
        return self._free_at
