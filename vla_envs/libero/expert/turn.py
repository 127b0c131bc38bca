"""Turning a knob: take hold of its grip and turn the hand. Pushing it aside does not turn it: it sticks to the finger."""

import numpy as np

from vla_envs.libero.expert.hold import Hold, level
from vla_envs.libero.expert.joints import is_met, joint_sign
from vla_envs.libero.expert.motion import CLOSED, Target, turn_about
from vla_envs.libero.goals import JointPast
from vla_envs.libero.privileged import PrivilegedView

_LEAD = 0.3
"""How far the hand turns beyond what it has, rad."""


class Turn:
    """Turns one knob about the vertical until its joint has gone far enough.

    Args:
        body: The knob.
        predicate: What its joint must come to.
        rng: Draws what varies between episodes.
    """

    def __init__(self, body: int, predicate: JointPast, rng: np.random.Generator) -> None:
        self._hold = Hold(body, rng)
        self._predicate = predicate

    def prepare(self, view: PrivilegedView) -> None:
        """Find a hold on the knob.

        Raises:
            UnsupportedTaskError: There is none.
        """
        self._hold.grasp(view)

    def done(self, view: PrivilegedView) -> bool:
        """Whether it is turned far enough."""
        return is_met(view, self._predicate)

    def decide(self, view: PrivilegedView) -> Target:
        """Where the hand should be next."""
        if not self._hold.holds(view):
            return self._hold.reach(view)
        rotation = turn_about(np.array([0.0, 0.0, 1.0]), joint_sign(self._predicate) * _LEAD) @ level(
            view.end_effector.rotation
        )
        point = view.body(self._hold.body).out(self._hold.grasp(view).position)
        return Target(position=point, rotation=rotation, gripper=CLOSED, speed=self._hold.speed)
