"""Taking an object to where it belongs: reach, grasp, lift, carry, lower, let go, rise; which of these, the present state says.

held, not above its place       lift, carry (over what is in between)
held, above its place           lower, let go
in place, hand around it        let go and rise
else                            reach for it
"""

from dataclasses import dataclass

import numpy as np

from vla_envs.errors import UnsupportedTaskError
from vla_envs.libero.expert.grasp import PALM, PALM_HALF, TIP, Grasp
from vla_envs.libero.expert.heights import HALF_CELLS, Clouds, height_map, window_max
from vla_envs.libero.expert.hold import ABOVE, Hold, level, yaw_of
from vla_envs.libero.expert.joints import is_drawer
from vla_envs.libero.expert.motion import CLOSED, OPEN, Target, over
from vla_envs.libero.expert.obstacles import highest_between
from vla_envs.libero.privileged import Pose, PrivilegedView

_DROP = 0.006
"""From how high an object is let go, metres."""
_SPOTS = (0.0, -0.35, 0.35, -0.7, 0.7)
"""Where in a region an object may be put, as fractions of its half extents."""


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where an object belongs."""

    body: int
    """A body that it lies on or in; 0: the table."""
    site: int
    """The region; -1: the middle of the body."""
    size: tuple[float, ...]
    """(3,) half extents of the region along its own axes, metres."""
    roofless: bool
    """Whether it must be open above now; else anything will do (a drawer that is still to be opened)."""
    inside: bool
    """Whether it is enough that the object's origin is inside the region; else it must lie where it was meant to."""

    def frame(self, view: PrivilegedView) -> Pose:
        """Where the place is now."""
        return view.body(self.body) if self.site < 0 else view.site(self.site)


@dataclass(frozen=True, kw_only=True)
class _Rest:
    """Where an object comes to rest."""

    position: np.ndarray
    """(3,) of its origin, in the place's frame."""
    release: float
    """How far above that, metres, it is let go: what stands around may keep the hand higher."""
    grasp: Grasp
    """The grasp for which this holds."""
    frame: Pose
    """Where the place was."""
    neighbours: np.ndarray
    """(M, 3) where all objects were."""


class PickAndPlace:
    """Puts one object into its place.

    Args:
        body: The object.
        place: Where it belongs.
        rng: Draws what varies between episodes.
    """

    def __init__(self, body: int, place: Place, rng: np.random.Generator) -> None:
        self.body, self.place = body, place
        self._hold = Hold(body, rng)
        self._rest: _Rest | None = None

    def prepare(self, view: PrivilegedView) -> None:
        """Find a hold on the object, and a way into its place.

        Raises:
            UnsupportedTaskError: There is none.
        """
        self._hold.grasp(view)
        if not self.place.roofless:
            return
        frame, region = self.place.frame(view), view.geometry.model.site(self.place.site).name
        if _roofed(view, frame):
            raise UnsupportedTaskError(f"{region} is not open above, and it has no skill for putting things in from aside")
        if is_drawer(view, self.place.body) and not self._inside(view, frame.out(self._resting(view).position)):
            thing = view.name(self.body)
            raise UnsupportedTaskError(f"{thing} would stand out of {region}, and it has no skill for laying things down")

    def done(self, view: PrivilegedView) -> bool:
        """Whether the object lies in its place and the hand is off it."""
        return self._in_place(view) and not self._hold.holds(view) and not self._around(view)

    def decide(self, view: PrivilegedView) -> Target:
        """Where the hand should be next."""
        self._renew(view)
        if self._hold.holds(view):
            return self._carry(view)
        if self._in_place(view) and self._around(view):
            hand = view.end_effector
            free = view.gripper_opening > min(self._hold.grasp(view).width + 0.02, 0.075)
            up = hand.position + np.array([0.0, 0.0, 0.08 if free else 0.0])
            return Target(position=up, rotation=level(hand.rotation), gripper=OPEN, speed=self._hold.speed)
        return self._hold.reach(view)

    def _around(self, view: PrivilegedView) -> bool:
        offset = view.end_effector.position - view.body(self.body).out(self._hold.grasp(view).position)
        return bool(np.hypot(offset[0], offset[1]) < 0.06 and offset[2] < 0.07)

    def _in_place(self, view: PrivilegedView) -> bool:
        position = view.body(self.body).position
        if self.place.inside:
            return self._inside(view, position)
        rest = self._resting(view)
        away = position - self.place.frame(view).out(rest.position)
        return bool(np.hypot(away[0], away[1]) < 0.02 and -0.02 < away[2] < rest.release + 0.03)

    def _inside(self, view: PrivilegedView, position: np.ndarray) -> bool:
        frame = self.place.frame(view)
        extent = np.abs(frame.rotation @ np.array(self.place.size))
        return bool((np.abs(position - frame.position) < extent).all())

    def _carry(self, view: PrivilegedView) -> Target:
        hand, pose, rest = view.end_effector, view.body(self.body), self._resting(view)
        goal = self.place.frame(view).out(rest.position)
        release = goal + (hand.position - pose.position) + np.array([0.0, 0.0, rest.release])
        hang = hand.position[2] - view.lowest(self.body)
        top = highest_between(view, pose.position, goal, ignoring=set(view.geometry.parts(self.body)), margin=0.05)
        clearance = max(release[2], top + hang + ABOVE + self._hold.lift)
        away = pose.position - goal
        arrived = np.hypot(away[0], away[1]) < 0.012 and abs(hand.position[2] - release[2]) < 0.01
        return Target(
            position=over(hand.position, release, clearance=clearance),
            rotation=level(hand.rotation),
            gripper=OPEN if arrived else CLOSED,
            speed=self._hold.speed,
        )

    def _resting(self, view: PrivilegedView) -> _Rest:
        if self._rest is None:
            self._renew(view)
        assert self._rest is not None
        return self._rest

    def _renew(self, view: PrivilegedView) -> None:
        """Work out the resting place anew where the grasp is another, or while nothing is held, the place or others moved."""
        frame, rest, grasp = self.place.frame(view), self._rest, self._hold.grasp(view)
        others = view.body_positions[[body for body in view.objects.values() if body != self.body]]
        if rest is not None and rest.grasp is grasp:
            moved = np.linalg.norm(frame.position - rest.frame.position) > 0.02
            changed = bool((np.abs(others - rest.neighbours) > 0.03).any())
            if self._hold.holds(view) or not (moved or changed):
                return
        position, release = _resting_place(view, self.body, self.place, frame, grasp)
        self._rest = _Rest(position=position, release=release, grasp=grasp, frame=frame, neighbours=others)


def _roofed(view: PrivilegedView, frame: Pose) -> bool:
    """Whether a fixture is above the middle of a region."""
    clouds = Clouds(view)
    fixed = [body for body in clouds.bodies if body not in view.objects.values()]
    column = window_max(
        height_map(clouds.of(fixed, frame.position, 0.05), frame.position, 0.0), (-0.008, 0.008), (-0.008, 0.008)
    )
    return bool(column[HALF_CELLS, HALF_CELLS] > frame.position[2])


def _resting_place(view: PrivilegedView, body: int, place: Place, frame: Pose, grasp: Grasp) -> tuple[np.ndarray, float]:
    """The best spot of the place: where the object lies low, near the middle, and the hand has room to let it go."""
    pose, clouds = view.body(body), Clouds(view)
    parts = view.geometry.parts(body)
    around = clouds.of([item for item in clouds.bodies if item not in parts], frame.position, 0.4)
    own = clouds.of(parts, pose.position, 0.3)
    below = height_map(own, pose.position, 0.0, highest=False) - pose.position[2]
    rows, columns = np.nonzero(np.isfinite(below))
    underside = below[rows, columns]
    table = own[:, 2].min() if place.body == 0 else -np.inf
    hand = pose.out(grasp.position) - pose.position
    yaw = yaw_of(pose.rotation @ grasp.opening, np.array([0.0, 1.0, 0.0]))
    extent = np.abs(frame.rotation @ np.array(place.size))[:2]
    best_cost, best = np.inf, (frame.position, 0.0)
    for across in _SPOTS if extent[0] > 0.02 else (0.0,):
        for along in _SPOTS if extent[1] > 0.02 else (0.0,):
            spot = frame.position[:2] + extent * (across, along)
            surface = np.maximum(window_max(height_map(around, spot, 0.0), (-0.004, 0.004), (-0.004, 0.004)), table)
            height = float((surface[rows, columns] - underside).max())
            if not np.isfinite(height):
                height = float(frame.position[2] - underside.min())
            near_hand = height_map(around, spot + hand[:2], yaw)
            palm = window_max(near_hand, (-PALM_HALF[0], PALM_HALF[0]), (-PALM_HALF[1], PALM_HALF[1]))[HALF_CELLS, HALF_CELLS]
            fingers = window_max(near_hand, (-0.012, 0.012), (-0.075, 0.075))[HALF_CELLS, HALF_CELLS]
            release = max(_DROP, float(max(palm - PALM, fingers + TIP)) + 0.004 - (height + hand[2]))
            cost = height + 0.5 * release + 0.1 * np.hypot(*(extent * (across, along)))
            if cost < best_cost:
                best_cost, best = cost, (np.array([spot[0], spot[1], height]), release)
    return frame.into(best[0]), best[1]
