"""Goals judged on the device: the predicates of `libero/goals.py`, which is the reference, for all worlds in one kernel."""

from dataclasses import dataclass

import numpy as np
import warp as wp

from vla_envs.libero import goals
from vla_envs.vector.slot import contact_pairs

wp.set_module_options({"enable_backward": False})

_KINDS = (goals.OnObject, goals.OnSite, goals.InSite, goals.JointPast, goals.Lifted, goals.Always)
_COMPARISONS = ("<", "<=", ">", ">=")
_ON_OBJECT, _ON_SITE, _IN_SITE, _JOINT_PAST, _LIFTED = (wp.constant(kind) for kind in range(5))
_RADIUS = wp.constant(goals.ON_OBJECT_RADIUS)
_HEIGHT = wp.constant(goals.ON_SITE_HEIGHT)
_UP = wp.constant(goals.UP_HEIGHT)


@wp.struct
class Predicates:
    """The goal's predicates, one row each; what a kind does not use is 0."""

    kind: wp.array[int]
    body: wp.array[int]
    """The object."""
    place: wp.array[int]
    """Body or site that it belongs on or in."""
    size: wp.array[wp.vec3]
    contact: wp.array[int]
    """Index of a contact pair; -1: none is needed."""
    comparison: wp.array[int]
    threshold: wp.array[float]
    every: wp.array[int]
    joints_begin: wp.array[int]
    """Rows of `joints` that belong to the predicate: from here ..."""
    joints_end: wp.array[int]
    """... up to here."""
    joints: wp.array[int]
    """Addresses in qpos."""
    first: wp.array[wp.uint64]
    """(ngeom,) bit p: the geom is in the first set of contact pair p."""
    second: wp.array[wp.uint64]


@dataclass(frozen=True)
class _Row:
    kind: int
    body: int = 0
    place: int = 0
    size: tuple[float, ...] = (0.0, 0.0, 0.0)
    contact: int = -1
    comparison: int = 0
    threshold: float = 0.0
    every: int = 0
    joints: tuple[int, ...] = ()


def predicates_on_device(goal: goals.Goal, num_geoms: int) -> Predicates:
    """A goal on Warp's current device."""
    rows = [_row(predicate) for predicate in goal.predicates]
    table, pairs = Predicates(), contact_pairs(num_geoms, goal.contact_pairs)
    for name in ("kind", "body", "place", "contact", "comparison", "every"):
        setattr(table, name, wp.array([getattr(row, name) for row in rows], dtype=int))
    table.threshold = wp.array([row.threshold for row in rows], dtype=float)
    table.size = wp.array([row.size for row in rows], dtype=wp.vec3)
    ends = np.cumsum([len(row.joints) for row in rows])
    table.joints_begin = wp.array(ends - [len(row.joints) for row in rows], dtype=int)
    table.joints_end = wp.array(ends, dtype=int)
    table.joints = wp.array([joint for row in rows for joint in row.joints] or [0], dtype=int)
    table.first, table.second = wp.array(pairs.first, dtype=wp.uint64), wp.array(pairs.second, dtype=wp.uint64)
    return table


def _row(predicate: goals.Predicate) -> _Row:
    kind = _KINDS.index(type(predicate))
    match predicate:
        case goals.OnObject():
            return _Row(kind, predicate.body, predicate.support, contact=predicate.contact)
        case goals.OnSite():
            return _Row(kind, predicate.body, predicate.site, predicate.size, predicate.contact)
        case goals.InSite():
            return _Row(kind, predicate.body, predicate.site, predicate.size)
        case goals.JointPast():
            comparison = _COMPARISONS.index(predicate.comparison)
            joints = predicate.qpos_addresses
            return _Row(kind, comparison=comparison, threshold=predicate.threshold, every=int(predicate.every), joints=joints)
        case goals.Lifted():
            return _Row(kind, predicate.body)
    return _Row(kind)


@wp.kernel
def find_touching(
    predicates: Predicates,
    num_contacts: wp.array[int],
    geoms: wp.array[wp.vec2i],
    worlds: wp.array[int],
    touching: wp.array[wp.uint64],
):
    """Set bit p of a world where contact pair p touches; one thread per contact."""
    contact = wp.tid()
    if contact >= num_contacts[0]:
        return
    one = geoms[contact][0]
    other = geoms[contact][1]
    if one < 0 or other < 0:
        return
    bits = (predicates.first[one] & predicates.second[other]) | (predicates.first[other] & predicates.second[one])
    if bits != wp.uint64(0):
        wp.atomic_or(touching, worlds[contact], bits)


@wp.func
def _past(comparison: int, joint: float, threshold: float) -> bool:
    if comparison == 0:
        return joint < threshold
    if comparison == 1:
        return joint <= threshold
    if comparison == 2:
        return joint > threshold
    return joint >= threshold


@wp.func
def goal_holds(
    predicates: Predicates,
    world: int,
    qpos: wp.array2d[float],
    xpos: wp.array2d[wp.vec3],
    site_xpos: wp.array2d[wp.vec3],
    site_xmat: wp.array2d[wp.mat33],
    touching: wp.array[wp.uint64],
) -> bool:
    """Whether all predicates hold in a world."""
    for row in range(predicates.kind.shape[0]):
        kind = predicates.kind[row]
        place = predicates.place[row]
        size = predicates.size[row]
        holds = bool(True)
        contact = predicates.contact[row]
        if contact >= 0:
            holds = ((touching[world] >> wp.uint64(contact)) & wp.uint64(1)) == wp.uint64(1)
        position = xpos[world, predicates.body[row]]
        if kind == _ON_OBJECT:
            below = xpos[world, place]
            across = position[0] - below[0]
            along = position[1] - below[1]
            holds = holds and below[2] <= position[2] and wp.sqrt(across * across + along * along) < _RADIUS
        elif kind == _ON_SITE:
            offset = site_xmat[world, place] * (position - site_xpos[world, place])
            holds = holds and size[2] - 0.005 < offset[2] and offset[2] < size[2] + _HEIGHT
            holds = holds and wp.abs(offset[0]) < size[0] and wp.abs(offset[1]) < size[1]
        elif kind == _IN_SITE:
            extent = site_xmat[world, place] * size
            away = position - site_xpos[world, place]
            for axis in range(3):
                reach = wp.abs(extent[axis])
                lower = -reach
                if axis == 2:
                    lower = lower - 0.01
                holds = holds and away[axis] > lower and away[axis] < reach
        elif kind == _JOINT_PAST:
            beyond = int(0)
            for index in range(predicates.joints_begin[row], predicates.joints_end[row]):
                joint = qpos[world, predicates.joints[index]]
                if _past(predicates.comparison[row], joint, predicates.threshold[row]):
                    beyond += 1
            needed = int(1)
            if predicates.every[row] == 1:
                needed = predicates.joints_end[row] - predicates.joints_begin[row]
            holds = beyond >= needed
        elif kind == _LIFTED:
            holds = position[2] >= _UP
        if not holds:
            return False
    return True
