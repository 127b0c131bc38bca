"""From where the hand is to where it should be: one action of LIBERO's controller, without memory.

An action's translation of 1 moves the controller's goal by 5 cm, its rotation of 1 by 0.5 rad.
"""

from dataclasses import dataclass

import numpy as np

from vla_envs.libero.privileged import PrivilegedView

OPEN, CLOSED = -1.0, 1.0
"""Gripper commands."""
_TRANSLATION_GAIN = 20.0
"""Action per metre of distance."""
_ROTATION_GAIN = 2.0
"""Action per radian."""
_ROTATION_LIMIT = 0.5
_WRIST = (-0.088, 0.21)
"""Where the wrist's axis is seen from the fingertips while the hand points down: outwards and upwards, metres."""
_ARM = 0.65
"""Distance in metres from shoulder to wrist beyond which the arm is nearly straight, and its controller gets stuck."""
_OPENING_AT_FIRST = np.array([0.3, 1.0, 0.0])
"""How the fingers open when episodes begin, roughly: the first component decides between two that are a quarter turn away."""
_TILTS = np.linspace(0.0, 0.5, 51)


@dataclass(frozen=True, kw_only=True)
class Target:
    """Where the hand should be."""

    position: np.ndarray
    """(3,) of the point between the fingertips, metres."""
    rotation: np.ndarray
    """(3, 3): see `PrivilegedView.end_effector`. Where the arm would be nearly straight, the hand tilts away from it."""
    gripper: float
    """OPEN or CLOSED."""
    speed: float = 1.0
    """Largest translation action."""


def towards(view: PrivilegedView, target: Target) -> np.ndarray:
    """(7,) float64: the action that brings the hand nearer to its target."""
    hand = view.end_effector
    move = _TRANSLATION_GAIN * (target.position - hand.position)
    move *= min(1.0, target.speed / max(1e-9, float(np.abs(move).max())))
    rotation = _tilted_away(view) @ target.rotation if target.rotation[2, 2] < -0.9 else target.rotation
    turn = np.clip(_ROTATION_GAIN * rotation_vector(rotation @ hand.rotation.T), -_ROTATION_LIMIT, _ROTATION_LIMIT)
    return np.concatenate([move, turn, [target.gripper]])


def _tilted_away(view: PrivilegedView) -> np.ndarray:
    """(3, 3): the least turn of a hand that points down, fingers outwards, with which the arm stays bent where the hand is."""
    reach = view.end_effector.position - view.body("robot0_link2").position
    outwards = float(np.hypot(reach[0], reach[1]))
    cosine, sine = np.cos(_TILTS), np.sin(_TILTS)
    wrist = np.hypot(outwards + _WRIST[0] * cosine - _WRIST[1] * sine, reach[2] + _WRIST[1] * cosine + _WRIST[0] * sine)
    within = np.flatnonzero(wrist < _ARM)
    index = int(within[0]) if len(within) else len(_TILTS) - 1
    axis = np.array([reach[1], -reach[0], 0.0]) / max(outwards, 1e-9)
    return turn_about(axis, float(_TILTS[index]))


def turn_about(axis: np.ndarray, angle: float) -> np.ndarray:
    """(3, 3) rotation by an angle (rad) about a unit axis (3,): Rodrigues' formula."""
    x, y, z = axis
    cross = np.array([[0.0, -z, y], [z, 0.0, -x], [-y, x, 0.0]])
    return np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross


def over(hand: np.ndarray, goal: np.ndarray, *, clearance: float, slope: float = 3.0, near: float = 0.004) -> np.ndarray:
    """The next point of a way that comes down on `goal` from above, and knows no past.

    The way is a funnel: the hand may be as low as the goal within `near` of it, and must be higher by `slope` for every metre
    beyond, up to `clearance`. Below the funnel the hand first rises where it is.

    Args:
        hand: (3,) position now.
        goal: (3,) position in the end.
        clearance: Height in metres, world frame, at which nothing is in the way.
        slope: Steepness of the funnel.
        near: Radius of its bottom in metres.
    """
    distance = float(np.linalg.norm(goal[:2] - hand[:2]))
    floor = max(goal[2], min(clearance, goal[2] + slope * max(0.0, distance - near)))
    below = floor - hand[2]
    along = np.clip(1.0 - (below - 0.01) / 0.04, 0.0, 1.0)  # slow down, then stop and rise, where the funnel is above
    next_point = hand + along * (goal - hand)
    next_point[2] = floor
    return next_point


def along(hand: np.ndarray, goal: np.ndarray, approach: np.ndarray, *, standoff: float, least: float) -> np.ndarray:
    """The next point of a way that ends on `goal` in a given direction: the same funnel as `over`, lying on its side.

    Args:
        hand: (3,) position now.
        goal: (3,) position in the end.
        approach: (3,) unit vector of the last part of the way.
        standoff: How long that part is, metres.
        least: How much of it must not be gone yet.
    """
    apart = hand - goal
    sideways = apart - apart @ approach * approach
    back = max(least, min(standoff, 3.0 * max(0.0, float(np.linalg.norm(sideways)) - 0.004)))
    missing = back + apart @ approach
    free = np.clip(1.0 - (missing - 0.01) / 0.04, 0.0, 1.0)
    return goal - back * approach + (1.0 - free) * sideways


def leaning(out: np.ndarray, lean: float, *, across: bool = False) -> np.ndarray:
    """(3, 3): the hand pointing down and leaning `lean` (rad) towards `out`, its fingers pointing against it.

    They open along `out` and upwards, around a bar that lies across; with `across` along such a bar, which makes the hand
    flat. Of the two such rotations, half a turn apart, it is the one nearer to the posture in which episodes begin.
    """
    flat = np.array([out[0], out[1], 0.0]) / np.hypot(out[0], out[1])
    up = np.array([0.0, 0.0, 1.0])
    pointing = -np.sin(lean) * flat - np.cos(lean) * up
    opening = np.cos(lean) * flat - np.sin(lean) * up
    if across:
        opening = np.cross(pointing, opening)
    if opening @ _OPENING_AT_FIRST < 0:
        opening = -opening
    return np.column_stack([opening, np.cross(pointing, opening), pointing])


def rotation_vector(rotation: np.ndarray) -> np.ndarray:
    """(3,) axis times angle (rad) of a (3, 3) rotation."""
    axis = np.array([rotation[2, 1] - rotation[1, 2], rotation[0, 2] - rotation[2, 0], rotation[1, 0] - rotation[0, 1]])
    sine, cosine = np.linalg.norm(axis) / 2, (np.trace(rotation) - 1) / 2
    if sine < 1e-9:
        return np.zeros(3)
    return axis / (2 * sine) * np.arctan2(sine, cosine)


def downward(yaw: float) -> np.ndarray:
    """(3, 3): the hand pointing straight down; at yaw 0 its fingers open along the world's y axis, at pi/2 along -x."""
    cosine, sine = np.cos(yaw), np.sin(yaw)
    return np.array([[-sine, cosine, 0.0], [cosine, sine, 0.0], [0.0, 0.0, -1.0]])
