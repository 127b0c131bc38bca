"""Pulling a drawer open: take its handle from above and before it, then draw it the way its joint goes."""

from dataclasses import dataclass

import numpy as np

from vla_envs.errors import UnsupportedTaskError
from vla_envs.libero.expert.joints import is_met, joint_sign, slide_handle
from vla_envs.libero.expert.motion import CLOSED, OPEN, Target, along, leaning, rotation_vector
from vla_envs.libero.goals import JointPast
from vla_envs.libero.privileged import PrivilegedView

_STANDOFF = 0.10
"""How far from the handle the hand turns, metres."""
_LEAD = 0.08
"""How far beyond the hand its goal lies while pulling, metres."""
_HELD = 0.035
"""Opening in metres below which the fingers hold the handle."""


_ROOM = 0.09
"""Height in metres that the hand needs below a handle: half its width."""


@dataclass(frozen=True, kw_only=True)
class Pull:
    """Pulls one drawer until its joint has gone far enough."""

    body: int
    """The drawer."""
    predicate: JointPast
    """What its joint must come to."""
    lean: float
    """How far the hand leans from pointing straight down, away from the drawer's front, rad."""
    speed: float
    """Largest translation action."""

    def prepare(self, view: PrivilegedView) -> None:
        """See whether the hand fits before the handle.

        Raises:
            UnsupportedTaskError: It is too near to what the fixture stands on.
        """
        handle = slide_handle(view, self.body, joint_sign(self.predicate))
        room = handle.point[2] - view.lowest(int(view.geometry.model.body_rootid[self.body]))
        if room < _ROOM:
            raise UnsupportedTaskError(
                f"the handle of {view.name(self.body)} is {100 * room:.0f} cm above the table: no room for the hand"
            )

    def done(self, view: PrivilegedView) -> bool:
        """Whether it has gone far enough, and the hand is off the handle."""
        return is_met(view, self.predicate) and not self._around(view)

    def decide(self, view: PrivilegedView) -> Target:
        """Where the hand should be next."""
        hand = view.end_effector
        handle = slide_handle(view, self.body, joint_sign(self.predicate))
        rotation = leaning(handle.way, self.lean)
        apart = hand.position - handle.point
        near = float(np.linalg.norm(apart))
        if is_met(view, self.predicate):  # back out; straight up the fingers would take the handle along
            free = 0.06 if view.gripper_opening > _HELD else 0.0
            position = hand.position - free * hand.rotation[:, 2]
            return Target(position=position, rotation=hand.rotation, gripper=OPEN, speed=self.speed)
        if near < 0.03 and 0.002 < view.gripper_opening < _HELD and abs(view.gripper_speed) < 0.03:
            return Target(position=hand.position + _LEAD * handle.way, rotation=rotation, gripper=CLOSED, speed=self.speed)
        if near < 0.012 or (near < 0.025 and view.gripper_opening < 0.07):
            return Target(position=handle.point, rotation=rotation, gripper=CLOSED, speed=self.speed)
        approach = rotation[:, 2]
        turned = float(np.linalg.norm(rotation_vector(rotation @ hand.rotation.T)))
        least = _STANDOFF if turned > 0.35 else 0.0
        target = along(hand.position, handle.point, approach, standoff=_STANDOFF, least=least)
        return Target(position=target, rotation=rotation, gripper=OPEN, speed=self.speed)

    def _around(self, view: PrivilegedView) -> bool:
        handle = slide_handle(view, self.body, joint_sign(self.predicate))
        return bool(np.linalg.norm(view.end_effector.position - handle.point) < 0.08)
