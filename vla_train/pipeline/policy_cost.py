"""How long a policy call takes by its rows, learnt while running: is it worth making workers share a call?

A call of r rows takes about `fixed + r * per_row`. Sharing saves the fixed part and delays those who could have been served
first. Where calls cost little more for more rows, sharing wins; where the cost is proportional to the rows, it only makes all
workers wait together for the same answer, and then the policy for all of them.
"""

import math

_FORGETTING = 1.01
"""The fastest call seen for a number of rows may be this much slower each time: costs may change during a run."""


class PolicyCost:
    """A line through the fastest call seen for each number of rows."""

    def __init__(self) -> None:
        self._fastest: dict[int, float] = {}

    def record(self, rows: int, seconds: float) -> None:
        """Take note of one call."""
        self._fastest[rows] = min(seconds, self._fastest.get(rows, math.inf) * _FORGETTING)

    @property
    def fixed_rows(self) -> float:
        """fixed / per_row: how many rows take as long as the fixed part of a call.

        Infinite until calls of two different sizes have been seen, and where more rows cost nothing.
        """
        count = len(self._fastest)
        if count < 2:
            return math.inf
        mean_rows = sum(self._fastest) / count
        mean_seconds = sum(self._fastest.values()) / count
        spread = sum((rows - mean_rows) ** 2 for rows in self._fastest)
        slope = sum((rows - mean_rows) * (seconds - mean_seconds) for rows, seconds in self._fastest.items()) / spread
        if slope <= 0:
            return math.inf
        return max(0.0, mean_seconds - slope * mean_rows) / slope
