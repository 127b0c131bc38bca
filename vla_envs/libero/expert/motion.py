"""From where the hand is to where it should be: one action of LIBERO's controller, without memory.

An action's translation of 1 moves the controller's goal by 5 cm, its rotation of 1 by 0.5 rad.
"""

from dataclasses import dataclass

import numpy as np

from vla_envs.libero.privileged import PrivilegedView

OPEN, CLOSED = -1.0, 1.0
"""Gripper commands."""
_TRANSLATION_GAIN = 12.0
"""Action per metre of distance."""
_ROTATION_GAIN = 1.5
"""Action per radian."""
_ROTATION_LIMIT = 0.5


@dataclass(frozen=True, kw_only=True)
class Target:
    """Where the hand should be."""

    position: np.ndarray
    """(3,) of the point between the fingertips, metres."""
    rotation: np.ndarray
    """(3, 3): see `PrivilegedView.end_effector`."""
    gripper: float
    """OPEN or CLOSED."""
    speed: float = 1.0
    """Largest translation action."""


def towards(view: PrivilegedView, target: Target) -> np.ndarray:
    """(7,) float64: the action that brings the hand nearer to its target."""
    hand = view.end_effector
    move = _TRANSLATION_GAIN * (target.position - hand.position)
    move *= min(1.0, target.speed / max(1e-9, float(np.abs(move).max())))
    turn = np.clip(_ROTATION_GAIN * rotation_vector(target.rotation @ hand.rotation.T), -_ROTATION_LIMIT, _ROTATION_LIMIT)
    return np.concatenate([move, turn, [target.gripper]])


def over(hand: np.ndarray, goal: np.ndarray, *, clearance: float, slope: float = 1.5, near: float = 0.01) -> np.ndarray:
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
