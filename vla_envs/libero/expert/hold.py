"""Taking hold of a thing from above: come down on the planned grasp with open fingers, then close them.

The plan is a function of how things lie, worked out anew when the thing was moved or tilted while nothing held it, or when a
drawer or door has moved, which may be in the way.
"""

import numpy as np

from vla_envs.errors import UnsupportedTaskError
from vla_envs.libero.expert.grasp import TIP, Grasp, find_grasp
from vla_envs.libero.expert.joints import fixture_joints
from vla_envs.libero.expert.motion import CLOSED, OPEN, Target, downward, over
from vla_envs.libero.expert.obstacles import highest_between
from vla_envs.libero.privileged import Pose, PrivilegedView

ABOVE = 0.02
"""Clear height over obstacles, metres."""
_SHUT_FROM = 0.074
"""Opening in metres below which the fingers are on their way to hold something, or do."""
_MOVED = 0.02
"""A thing that was moved further, metres, is planned for anew."""


class Hold:
    """Holds one body.

    Args:
        body: What to hold.
        rng: Draws what varies between episodes.
    """

    def __init__(self, body: int, rng: np.random.Generator) -> None:
        self.body = body
        self.speed = rng.uniform(0.85, 1.0)
        self.lift = rng.uniform(0.0, 0.03)
        """How much higher than needed the hand travels, metres."""
        self._rng = rng
        self._grasp: Grasp | None = None
        self._planned_at: Pose | None = None
        self._planned_joints = np.zeros(0)

    def grasp(self, view: PrivilegedView) -> Grasp:
        """The plan as things lie now.

        Raises:
            UnsupportedTaskError: There is no hold on it.
        """
        pose = view.body(self.body)
        if self._grasp is not None and self._planned_at is not None:
            tilted = float(pose.rotation[2] @ self._planned_at.rotation[2]) < 0.95
            moved = bool(np.linalg.norm(pose.position - self._planned_at.position) > _MOVED)
            opened = bool(np.abs(fixture_joints(view) - self._planned_joints).max(initial=0.0) > _MOVED)
            at_it = np.linalg.norm(pose.out(self._grasp.position) - view.end_effector.position) < 0.05
            if self.holds(view) or not (tilted or moved or opened) or (at_it and not tilted):
                return self._grasp
        found = find_grasp(view, self.body, self._rng)
        if found is None and self._grasp is None:
            raise UnsupportedTaskError(f"the hand finds no hold on {view.name(self.body)} from above, as it lies")
        self._grasp, self._planned_at, self._planned_joints = found or self._grasp, pose, fixture_joints(view)
        assert self._grasp is not None
        return self._grasp

    def holds(self, view: PrivilegedView) -> bool:
        """Whether the fingers are closed around it."""
        if self._grasp is None:
            return False
        apart = np.linalg.norm(view.body(self.body).out(self._grasp.position) - view.end_effector.position)
        return bool(apart < 0.03 and 0.002 < view.gripper_opening < _SHUT_FROM and abs(view.gripper_speed) < 0.03)

    def reach(self, view: PrivilegedView) -> Target:
        """The next move towards holding it."""
        hand, pose, grasp = view.end_effector, view.body(self.body), self.grasp(view)
        point = pose.out(grasp.position)
        rotation = downward(yaw_of(pose.rotation @ grasp.opening, hand.rotation[:, 0]))
        offset = hand.position - point
        sideways = float(np.hypot(offset[0], offset[1]))
        turned = abs(float(np.cross(rotation[:, 0], hand.rotation[:, 0])[2]))
        lined_up = sideways < 0.007 and abs(offset[2]) < 0.008 and turned < 0.12
        if lined_up or (view.gripper_opening < _SHUT_FROM and np.linalg.norm(offset) < 0.02):
            return Target(position=point, rotation=rotation, gripper=CLOSED, speed=self.speed)
        top = highest_between(view, hand.position, point, ignoring=set(), margin=0.06)
        clearance = max(point[2] + 0.03, top + ABOVE + TIP) + self.lift
        if sideways < 0.03 and turned > 0.3:  # turn above it, not around it
            point = np.array([point[0], point[1], max(point[2] + 0.05, min(hand.position[2], clearance))])
        position = over(hand.position, point, clearance=clearance)
        return Target(position=position, rotation=rotation, gripper=OPEN, speed=self.speed)


def yaw_of(opening: np.ndarray, now: np.ndarray) -> float:
    """Yaw at which the fingers open along `opening`, of the two that are half a turn apart the one nearer to `now`."""
    if opening[:2] @ now[:2] < 0:
        opening = -opening
    return float(np.arctan2(-opening[0], opening[1]))


def level(rotation: np.ndarray) -> np.ndarray:
    """The hand pointing straight down with the yaw that it has."""
    return downward(float(np.arctan2(-rotation[0, 0], rotation[1, 0])))
