"""How often something that fails may be restarted: measured by the work it does in between, not by a clock or a whole run.

A simulator that crashes every few hours never ends a run. One that cannot play at all does, after a few attempts; so does one
that only a certain episode breaks, since that episode is tried again until it ends.
"""

from collections import deque


class Restarts:
    """Restarts of one worker.

    Args:
        most: Restarts that it may have within `window` pieces of work.
        window: Pieces of work; at least 1.
    """

    def __init__(self, *, most: int, window: int) -> None:
        self._most = most
        self._window = window
        self._done = 0
        self._restarts: deque[int] = deque()
        """What was done by the time of each restart that still counts."""

    def __len__(self) -> int:
        """Restarts within the newest `window` pieces of work."""
        while self._restarts and self._done - self._restarts[0] >= self._window:
            self._restarts.popleft()
        return len(self._restarts)

    def worked(self) -> None:
        """A piece of work was done."""
        self._done += 1

    @property
    def exhausted(self) -> bool:
        """Whether it may not be restarted again."""
        return len(self) >= self._most

    def restarted(self) -> None:
        """It is restarted."""
        self._restarts.append(self._done)
