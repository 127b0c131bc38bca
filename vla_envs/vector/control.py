"""What the numbers of an action mean: robosuite's controllers that an env can be made with, by name.

Invariant: the last number of an action is the gripper's in every mode. While a scene comes to rest, LIBERO's own controller
(`osc_delta`) is in charge whatever the mode, so that equal starts are equal states in all of them.
"""

import math
from dataclasses import dataclass

OSC_DELTA, OSC_ABSOLUTE, JOINT_POSITION = 0, 1, 2
"""Numbers of the control laws, for compiled code."""


@dataclass(frozen=True, kw_only=True)
class ControlMode:
    """One way to command the arm. Shape letter: A numbers of an action."""

    law: int
    """One of the numbers above."""
    low: tuple[float, ...]
    """A lower bounds of the action space; m and rad where poses are absolute, else without a unit."""
    high: tuple[float, ...]
    meaning: str
    """For those who read a dataset."""

    @property
    def action_dim(self) -> int:
        """A."""
        return len(self.low)


_POSE_BOUND = (2.0,) * 3 + (math.pi,) * 3
"""m and rad: all that the arms of LIBERO reach. robosuite has no limits for absolute poses, and clips none."""

CONTROL_MODES = {
    "osc_delta": ControlMode(
        law=OSC_DELTA, low=(-1.0,) * 7, high=(1.0,) * 7, meaning="relative end-effector pose (OSC_POSE), 20 Hz"
    ),
    "osc_absolute": ControlMode(
        law=OSC_ABSOLUTE,
        low=(*(-bound for bound in _POSE_BOUND), -1.0),
        high=(*_POSE_BOUND, 1.0),
        meaning="absolute end-effector pose (OSC_POSE, control_delta=False), 20 Hz",
    ),
    "joint_position": ControlMode(
        law=JOINT_POSITION, low=(-1.0,) * 8, high=(1.0,) * 8, meaning="relative joint positions (JOINT_POSITION), 20 Hz"
    ),
}
"""By the name that `control=` takes."""
