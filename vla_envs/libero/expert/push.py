"""Pushing a door or a drawer shut: get before its face, then push it the way its joint goes, wherever it stands now."""

from dataclasses import dataclass

import mujoco
import numpy as np

from vla_envs.libero.expert.motion import CLOSED, Target, downward, over
from vla_envs.libero.privileged import Pose, PrivilegedView

_FINGER = 0.012
"""Half the thickness of the closed fingers, metres."""
_STANDOFF = 0.05
"""How far before the face the hand comes down, metres."""
_LEAD = 0.08
"""How far beyond the hand the goal lies while pushing, metres."""


@dataclass(frozen=True, kw_only=True)
class PushShut:
    """Pushes the face of a hinged door until its joint has gone far enough."""

    body: int
    """The door."""
    sign: float
    """+1 if its joint must grow, -1 if it must shrink."""
    reach: float
    """Where to push: fraction of the door's width, from the hinge."""
    depth: float
    """How far below the door's top the fingertips are, metres."""
    speed: float
    """Largest translation action."""

    def decide(self, view: PrivilegedView) -> Target:
        """Where the hand should be next."""
        pose, hand = view.body(self.body), view.end_effector.position
        way, point = self._contact(view, pose)
        ahead = float((point - hand) @ way)  # until the fingers touch the face
        aside = (hand - point) - (hand - point) @ way * way
        if -2 * _FINGER < ahead < 3 * _STANDOFF and abs(aside[2]) < 0.04 and np.linalg.norm(aside[:2]) < 0.08:
            target = hand + way * _LEAD - aside
        else:
            top = view.box(self.body).high[2] + pose.position[2]
            target = over(hand, point - way * _STANDOFF, clearance=top + 0.05)
        return Target(position=target, rotation=downward(0.0), gripper=CLOSED, speed=self.speed)

    def _contact(self, view: PrivilegedView, pose: Pose) -> tuple[np.ndarray, np.ndarray]:
        """(3,) the way the door moves, and (3,) where the fingertips touch it, in the world."""
        model, box = view.geometry.model, view.box(self.body)
        joint = model.body_jntadr[self.body]
        anchor, axis = model.jnt_pos[joint], model.jnt_axis[joint]
        radius = box.centre - anchor
        radius -= radius @ axis * axis
        across = int(np.argmax(np.abs(radius)))  # the door's own axis from hinge to edge
        local = box.centre.copy()
        edge = box.high[across] if radius[across] > 0 else box.low[across]
        local[across] = anchor[across] + self.reach * (edge - anchor[across])
        local[2] = box.high[2] - self.depth
        outwards = np.zeros(3)
        outwards[across] = np.sign(radius[across])
        way = self.sign * np.cross(axis, outwards)
        face = surface(view, self.body, local, way)
        local += (face - _FINGER - local @ way) * way
        return pose.rotation @ way, pose.out(local)


def surface(view: PrivilegedView, body: int, point: np.ndarray, way: np.ndarray) -> float:
    """Where a body begins for what moves along `way` (one of its own axes, signed) through `point`: coordinate along `way`."""
    axis = int(np.argmax(np.abs(way)))
    sides = [other for other in range(3) if other != axis]
    met = [
        float((corners @ way).min())
        for corners in view.geometry.shapes(body)
        if all(corners[:, side].min() - _FINGER <= point[side] <= corners[:, side].max() + _FINGER for side in sides)
    ]
    return min(met) if met else float(point @ way)


def joint_body(view: PrivilegedView, address: int) -> int:
    """The body that the joint at this address of qpos moves."""
    model = view.geometry.model
    joint = int(np.flatnonzero(model.jnt_qposadr == address)[0])
    return int(model.jnt_bodyid[joint])


def is_hinge(view: PrivilegedView, body: int) -> bool:
    """Whether a body turns, rather than slides."""
    model = view.geometry.model
    return model.jnt_type[model.body_jntadr[body]] == mujoco.mjtJoint.mjJNT_HINGE
