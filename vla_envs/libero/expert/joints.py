"""Doors, drawers and knobs as what can be pushed or pulled: the way a part moves, and where a hand meets it.

Shapes come from colliding boxes; every function takes the state as it is now, so that its answer moves along with the part.
"""

from dataclasses import dataclass

import mujoco
import numpy as np

from vla_envs.libero.goals import GoalInputs, JointPast
from vla_envs.libero.privileged import Pose, PrivilegedView

FINGER = 0.012
"""Half the thickness of the closed fingers, metres."""


@dataclass(frozen=True, kw_only=True)
class Handle:
    """Where a hand meets a part. World frame."""

    point: np.ndarray
    """(3,) on the part's surface (pushing) or the middle of its handle (pulling), metres."""
    way: np.ndarray
    """(3,) unit vector: how that point moves when the joint goes as wanted."""
    top: float
    """Height in metres of the part's highest point."""


def joint_sign(predicate: JointPast) -> float:
    """+1 if the joints must grow to meet the predicate, -1 if they must shrink."""
    return 1.0 if predicate.comparison.startswith(">") else -1.0


def is_met(view: PrivilegedView, predicate: JointPast) -> bool:
    """Whether the joints are far enough now."""
    poses = np.zeros((1, 0, 3))
    states = GoalInputs(
        qpos=view.qpos[None], body_xpos=poses, site_xpos=poses, site_xmat=poses, touching=np.zeros((1, 0), bool)
    )
    return bool(predicate.holds(states)[0])


def fixture_joints(view: PrivilegedView) -> np.ndarray:
    """(J,) positions of all doors, drawers and knobs."""
    geometry = view.geometry
    if "fixture_joints" not in geometry.derived:
        model, fixtures = geometry.model, set(geometry.fixtures.values())
        joints = [joint for joint in range(model.njnt) if model.body_rootid[model.jnt_bodyid[joint]] in fixtures]
        geometry.derived["fixture_joints"] = model.jnt_qposadr[joints].astype(int)
    return view.qpos[geometry.derived["fixture_joints"]]


def joint_body(view: PrivilegedView, address: int) -> int:
    """The body that the joint at this address of qpos moves."""
    model = view.geometry.model
    return int(model.jnt_bodyid[np.flatnonzero(model.jnt_qposadr == address)[0]])


def is_drawer(view: PrivilegedView, body: int) -> bool:
    """Whether a body is a part of a fixture that slides."""
    model = view.geometry.model
    joint = model.body_jntadr[body]
    return bool(joint >= 0 and model.jnt_type[joint] == mujoco.mjtJoint.mjJNT_SLIDE)


def is_hinge(view: PrivilegedView, body: int) -> bool:
    """Whether a body turns, rather than slides."""
    model = view.geometry.model
    return bool(model.jnt_type[model.body_jntadr[body]] == mujoco.mjtJoint.mjJNT_HINGE)


def hinge_face(view: PrivilegedView, body: int, sign: float, *, reach: float, depth: float) -> Handle:
    """Where to push a part that turns about the vertical: at the side of its highest piece, away from the hinge.

    Args:
        view: Where everything is.
        body: The part.
        sign: +1 if its joint must grow, -1 if it must shrink.
        reach: Fraction of the way from the hinge to the piece's far end.
        depth: How far below the piece's top, metres.
    """
    model, pose = view.geometry.model, view.body(body)
    joint = model.body_jntadr[body]
    anchor, axis = model.jnt_pos[joint], model.jnt_axis[joint]
    boxes = [(corners.min(axis=0), corners.max(axis=0)) for corners in view.geometry.shapes(body)]
    low, high = max(boxes, key=lambda box: float(box[1][2]))
    centre = (low + high) / 2
    across = int(np.argmax(np.abs(centre - anchor)[:2]))  # from the hinge to the far end
    edge = high[across] if centre[across] > anchor[across] else low[across]
    outwards = np.zeros(3)
    outwards[across] = np.sign(edge - anchor[across])
    way = sign * np.cross(axis, outwards)
    point = centre.copy()
    point[across] = anchor[across] + reach * (edge - anchor[across])
    point[2] = high[2] - depth
    point += (_surface(view, body, point, way) - point @ way) * way
    return Handle(point=pose.out(point), way=pose.rotation @ way, top=float(pose.position[2] + high[2]))


def slide_face(view: PrivilegedView, body: int, sign: float) -> Handle:
    """Where to push a drawer: at the foremost piece of its front. Arguments as for `hinge_face`."""
    middle, way, pose, boxes = _foremost(view, body, sign)
    point = middle + (min(float((corners @ way).min()) for corners in boxes) - middle @ way) * way
    return Handle(point=pose.out(point), way=pose.rotation @ way, top=_top(pose, boxes))


def slide_handle(view: PrivilegedView, body: int, sign: float) -> Handle:
    """The middle of a drawer's handle, which stands out most the way the drawer opens. Arguments as for `hinge_face`."""
    middle, way, pose, boxes = _foremost(view, body, -sign)
    return Handle(point=pose.out(middle), way=pose.rotation @ -way, top=_top(pose, boxes))


def _foremost(view: PrivilegedView, body: int, sign: float) -> tuple[np.ndarray, np.ndarray, Pose, tuple[np.ndarray, ...]]:
    """Middle of the piece that comes first against the joint's way, that way, the body's pose and its pieces; body frame."""
    model = view.geometry.model
    way = sign * model.jnt_axis[model.body_jntadr[body]]
    boxes = view.geometry.shapes(body)
    first = min(boxes, key=lambda corners: float((corners @ way).mean()))
    return (first.min(axis=0) + first.max(axis=0)) / 2, way, view.body(body), boxes


def _top(pose: Pose, boxes: tuple[np.ndarray, ...]) -> float:
    return max(float(pose.out(corners)[:, 2].max()) for corners in boxes)


def _surface(view: PrivilegedView, body: int, point: np.ndarray, way: np.ndarray) -> float:
    """Where a body begins for a finger that moves along `way` (one of its axes) through `point`: coordinate along `way`."""
    axis = int(np.argmax(np.abs(way)))
    sides = [other for other in range(3) if other != axis]
    met = [
        float((corners @ way).min())
        for corners in view.geometry.shapes(body)
        if all(corners[:, side].min() - FINGER <= point[side] <= corners[:, side].max() + FINGER for side in sides)
    ]
    return min(met) if met else float(point @ way)
