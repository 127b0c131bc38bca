"""What MuJoCo takes for a number gone wild."""

import warp as wp

_HUGE = wp.constant(1e10)
"""MuJoCo's bound of a sane number."""


@wp.func
def is_bad(number: float) -> bool:
    """Whether a position, velocity or acceleration shows that the simulation has diverged; NaN does."""
    return not (wp.abs(number) < _HUGE)
