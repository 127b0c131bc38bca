"""Taking an object to where it belongs: reach, grasp, lift, carry, lower, let go, rise; which of these, the present state says.

    in place, fingers around it     let go and rise
    held, not above its place       lift, carry (over what is in between)
    held, above its place           lower, let go
    fingers around it               close
    else                            come down on the grasp, fingers open

What is planned (the grasp, the resting place) is a function of where objects lie, worked out anew when one was moved.
"""

from dataclasses import dataclass

import numpy as np

from vla_envs.errors import UnsupportedTaskError
from vla_envs.libero.expert.grasp import PALM, PALM_HALF, TIP, Grasp, find_grasp
from vla_envs.libero.expert.heights import HALF_CELLS, Clouds, height_map, window_max
from vla_envs.libero.expert.motion import CLOSED, OPEN, Target, downward, over
from vla_envs.libero.expert.obstacles import highest_between
from vla_envs.libero.privileged import Pose, PrivilegedView

_ABOVE = 0.02
"""Clear height over obstacles, metres."""
_DROP = 0.006
"""From how high an object is let go, metres."""
_SHUT_FROM = 0.074
"""Opening in metres below which the fingers are on their way to hold something, or do."""
_MOVED = 0.02
"""An object that was moved further, metres, is planned for anew."""


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where an object belongs."""

    body: int
    """A body in whose frame it lies, so that it moves along; -1: the world."""
    position: np.ndarray
    """(3,) of the middle, in that frame."""
    room: tuple[float, float]
    """How far from the middle the object may lie, along that frame's x and y, metres."""
    on_body: bool
    """Whether the support itself may be moved (an object on which another is put)."""


@dataclass(frozen=True, kw_only=True)
class _Plan:
    grasp: Grasp
    rest: np.ndarray
    """(3,) where the object's origin is when it lies in its place, in the place's frame."""
    release: float
    """How far above that, metres, the object is let go: what stands around may keep the hand higher."""
    object_pose: Pose
    """Where the object was when this was planned."""
    support: np.ndarray
    """(3,) where its place was."""


class PickAndPlace:
    """Puts one object into its place.

    Args:
        body: The object.
        place: Where it belongs.
        rng: Draws what varies between episodes.
    """

    def __init__(self, body: int, place: Place, rng: np.random.Generator) -> None:
        self.body, self.place = body, place
        self._rng = rng
        self._speed = rng.uniform(0.85, 1.0)
        self._lift = rng.uniform(0.0, 0.03)
        self._plan: _Plan | None = None

    def decide(self, view: PrivilegedView) -> Target:
        """Where the hand should be next."""
        hand, pose = view.end_effector, view.body(self.body)
        plan = self._planned(view, pose)
        point = pose.out(plan.grasp.position)
        yaw = _yaw(pose.rotation @ plan.grasp.opening, hand.rotation[:, 0])
        offset = hand.position - point
        near = float(np.linalg.norm(offset))
        rest = self._frame(view).out(plan.rest)
        astray = np.hypot(*(pose.position - rest)[:2])
        if self.holds(view):
            return self._carry(view, plan, pose, rest, astray)
        rotation = downward(yaw)
        if astray < 0.02 and -0.02 < pose.position[2] - rest[2] < plan.release + 0.03 and hand.position[2] < point[2] + 0.07:
            up = hand.position + np.array([0.0, 0.0, 0.08 if view.gripper_opening > plan.grasp.width + 0.02 else 0.0])
            return Target(position=up, rotation=_level(hand.rotation), gripper=OPEN, speed=self._speed)
        sideways = float(np.hypot(offset[0], offset[1]))
        turned = abs(np.cross(rotation[:, 0], hand.rotation[:, 0])[2])
        closing = view.gripper_opening < _SHUT_FROM
        lined_up = sideways < 0.007 and abs(offset[2]) < 0.008 and turned < 0.12
        if lined_up or (closing and near < 0.02):
            return Target(position=point, rotation=rotation, gripper=CLOSED, speed=self._speed)
        top = highest_between(view, hand.position, point, ignoring=set(), margin=0.06)
        clearance = max(point[2] + 0.03, top + _ABOVE + TIP) + self._lift
        if sideways < 0.03 and turned > 0.3:  # turn above the object, not around it
            point = np.array([point[0], point[1], max(point[2] + 0.05, min(hand.position[2], clearance))])
        return Target(
            position=over(hand.position, point, clearance=clearance),
            rotation=rotation,
            gripper=OPEN,
            speed=self._speed,
        )

    def holds(self, view: PrivilegedView) -> bool:
        """Whether the fingers are closed around the object."""
        if self._plan is None:
            return False
        grasp = self._plan.grasp
        apart = np.linalg.norm(view.body(self.body).out(grasp.position) - view.end_effector.position)
        return bool(apart < 0.03 and 0.002 < view.gripper_opening < _SHUT_FROM and abs(view.gripper_speed) < 0.03)

    def _carry(self, view: PrivilegedView, plan: _Plan, pose: Pose, rest: np.ndarray, astray: float) -> Target:
        hand = view.end_effector
        held = hand.position - pose.position
        release = rest + held + np.array([0.0, 0.0, plan.release])
        hang = hand.position[2] - view.lowest(self.body)
        top = highest_between(view, pose.position, rest, ignoring={self.body}, margin=0.05)
        clearance = max(release[2], top + hang + _ABOVE + self._lift)
        target = over(hand.position, release, clearance=clearance)
        arrived = astray < 0.012 and abs(hand.position[2] - release[2]) < 0.01
        return Target(position=target, rotation=_level(hand.rotation), gripper=OPEN if arrived else CLOSED, speed=self._speed)

    def _frame(self, view: PrivilegedView) -> Pose:
        if self.place.body < 0:
            return Pose(position=np.zeros(3), rotation=np.eye(3))
        return view.body(self.place.body)

    def _planned(self, view: PrivilegedView, pose: Pose) -> _Plan:
        """The plan, made anew if the object or its place was moved while nothing held it."""
        frame = self._frame(view)
        plan = self._plan
        if plan is not None:
            tilted = float(pose.rotation[2] @ plan.object_pose.rotation[2]) < 0.95
            elsewhere = np.linalg.norm(pose.position - plan.object_pose.position) > _MOVED
            shifted = np.linalg.norm(frame.position - plan.support) > _MOVED
            if self.holds(view) or not (tilted or elsewhere or shifted):
                return plan
            if np.linalg.norm(pose.out(plan.grasp.position) - view.end_effector.position) < 0.05 and not tilted:
                return plan  # it moves because the hand is at it
        grasp = find_grasp(view, self.body, self._rng)
        if grasp is None:
            if plan is None:
                raise UnsupportedTaskError(f"the hand finds no hold on {view.name(self.body)} from above, as it lies")
            return plan
        rest, release = _resting_place(view, self.body, self.place, frame, grasp, pose)
        self._plan = _Plan(grasp=grasp, rest=rest, release=release, object_pose=pose, support=frame.position)
        return self._plan


def _resting_place(
    view: PrivilegedView, body: int, place: Place, frame: Pose, grasp: Grasp, pose: Pose
) -> tuple[np.ndarray, float]:
    """Where the object's origin comes to rest, in the place's frame, and how far above that it must be let go."""
    clouds = Clouds(view)
    middle = frame.out(place.position)
    others = [item for item in clouds.bodies if item != body]
    around = clouds.of(others, middle, 0.3)
    own = clouds.of([body], pose.position, 0.3)
    below = height_map(own, pose.position, 0.0, highest=False) - pose.position[2]
    surface = height_map(around, middle, 0.0)
    filled = np.isfinite(below)
    rows, columns = np.nonzero(filled)
    table = own[:, 2].min() if place.body < 0 else -np.inf
    ground = np.maximum(window_max(surface, (-0.004, 0.004), (-0.004, 0.004)), table)

    def landing(row: int, column: int) -> float:
        """Height of the object's origin if it comes down with its origin over this cell."""
        inside_rows, inside_columns = rows + row - HALF_CELLS, columns + column - HALF_CELLS
        return float((ground[inside_rows, inside_columns] - below[rows, columns]).max())

    height = landing(HALF_CELLS, HALF_CELLS)
    if not np.isfinite(height):
        height = middle[2] - float(below[filled].min())
    rest = np.array([middle[0], middle[1], height])

    hand = pose.out(grasp.position) - pose.position
    yaw = _yaw(pose.rotation @ grasp.opening, np.array([0.0, 1.0, 0.0]))
    near_hand = height_map(around, middle + hand, yaw)
    across, along = PALM_HALF
    palm = window_max(near_hand, (-across, across), (-along, along))[HALF_CELLS, HALF_CELLS]
    fingers = window_max(near_hand, (-0.012, 0.012), (-0.075, 0.075))[HALF_CELLS, HALF_CELLS]
    lowest_hand = max(palm - PALM, fingers + TIP) + 0.004
    release = max(_DROP, lowest_hand - (height + hand[2]))
    return frame.into(rest), float(release)


def _yaw(opening: np.ndarray, now: np.ndarray) -> float:
    """Yaw at which the fingers open along `opening`, of the two that are half a turn apart the one nearer to `now`."""
    if opening[:2] @ now[:2] < 0:
        opening = -opening
    return float(np.arctan2(-opening[0], opening[1]))


def _level(rotation: np.ndarray) -> np.ndarray:
    """The hand pointing straight down with the yaw that it has."""
    return downward(float(np.arctan2(-rotation[0, 0], rotation[1, 0])))
