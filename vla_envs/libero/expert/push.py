"""Pushing doors, drawers and knobs: get before the part, then push it the way its joint goes, wherever it stands by now."""

from dataclasses import dataclass

import numpy as np

from vla_envs.libero.expert.joints import FINGER, Handle, hinge_face, is_hinge, is_met, joint_sign, slide_face
from vla_envs.libero.expert.motion import CLOSED, Target, downward, leaning, over
from vla_envs.libero.expert.obstacles import highest_between
from vla_envs.libero.goals import JointPast
from vla_envs.libero.privileged import PrivilegedView

_STANDOFF = 0.05
"""How far before the part the hand comes down, metres."""


@dataclass(frozen=True, kw_only=True)
class Push:
    """Pushes one part until its joint has gone far enough."""

    body: int
    """The part."""
    predicate: JointPast
    """What its joint must come to."""
    reach: float
    """Where to push a door: fraction of its width, from the hinge."""
    depth: float
    """How far below a door's top the hand is, metres."""
    lean: float
    """How far the hand leans back from a drawer's front, rad."""
    lead: float
    """How far beyond the hand its goal lies while pushing, metres."""
    speed: float
    """Largest translation action."""

    def prepare(self, view: PrivilegedView) -> None:
        """Nothing to find out."""

    def done(self, view: PrivilegedView) -> bool:
        """Whether it has gone far enough."""
        return is_met(view, self.predicate)

    def decide(self, view: PrivilegedView) -> Target:
        """Where the hand should be next."""
        hand = view.end_effector
        if is_hinge(view, self.body):
            face = hinge_face(view, self.body, joint_sign(self.predicate), reach=self.reach, depth=self.depth)
            rotation = downward(0.0)
        else:
            face = slide_face(view, self.body, joint_sign(self.predicate))
            rotation = leaning(-face.way, self.lean, across=True)
        return Target(position=self._next(view, hand.position, face), rotation=rotation, gripper=CLOSED, speed=self.speed)

    def _next(self, view: PrivilegedView, hand: np.ndarray, face: Handle) -> np.ndarray:
        touch = face.point - FINGER * face.way
        ahead = float((touch - hand) @ face.way)
        aside = (hand - touch) - (hand - touch) @ face.way * face.way
        if -2 * FINGER < ahead < 3 * _STANDOFF and abs(aside[2]) < 0.04 and np.linalg.norm(aside[:2]) < self.lead:
            return hand + face.way * self.lead - aside
        before = touch - face.way * _STANDOFF
        top = highest_between(view, hand, before, ignoring=set(), margin=0.04)
        return over(hand, before, clearance=max(face.top, top) + 0.05)
