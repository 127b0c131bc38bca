"""What a compiled scene is made of, found from the model alone: a robot, articulated fixtures, free objects and the rest.

An entity is a tree of bodies under the world. What has no joint at all stands still for ever: all of it is one entity, the
arena.
"""

import re
from dataclasses import dataclass
from enum import Enum

import mujoco
import numpy as np

from vla_envs.errors import UnsupportedTaskError

ARENA = "arena"


class Kind(Enum):
    """How an entity moves."""

    ROBOT = "robot"
    """Joints, some of which have actuators; its root is fixed to the world."""
    FIXTURE = "fixture"
    """Joints without actuators; its root is fixed to the world."""
    OBJECT = "object"
    """One free body; bodies fixed to it are parts of it."""
    ARENA = "arena"
    """Does not move."""


@dataclass(frozen=True, kw_only=True)
class Entity:
    """A part of a scene that moves as one."""

    name: str
    """A valid USD name, unique in the scene."""
    kind: Kind
    root: int
    """Body whose frame is the entity's; 0, the world, for the arena."""
    bodies: tuple[int, ...]
    """Body ids, parents first."""


def find_entities(model: mujoco.MjModel) -> tuple[Entity, ...]:
    """All entities of a scene; each body belongs to one of them.

    Raises:
        UnsupportedTaskError: Bodies move in a way that USD's joints and Isaac Lab's assets do not express.
    """
    actuated = {int(model.jnt_bodyid[joint]) for joint in model.actuator_trnid[:, 0]} if model.nu else set()
    entities, still = [], [0]
    for root in np.flatnonzero(model.body_parentid == 0)[1:].tolist():
        bodies = np.flatnonzero(model.body_rootid == root).tolist()
        joints = [joint for body in bodies for joint in joints_of(model, body)]
        kind = _kind(model, root, bodies, joints, actuated)
        if kind is Kind.ARENA:
            still += bodies
        else:
            entities.append(Entity(name=prim_name(model.body(root).name), kind=kind, root=root, bodies=tuple(bodies)))
    arena = Entity(name=ARENA, kind=Kind.ARENA, root=0, bodies=tuple(still))
    names = [entity.name for entity in (arena, *entities)]
    assert len(set(names)) == len(names), f"entities share a name: {names}"
    return (arena, *entities)


def body_path(model: mujoco.MjModel, entity: Entity, body: int) -> str:
    """A body's name in USD, under its entity: that of what is fixed to a free body is under that body."""
    own = prim_name(model.body(body).name)
    return own if entity.kind is not Kind.OBJECT or body == entity.root else f"{prim_name(model.body(entity.root).name)}/{own}"


def joints_of(model: mujoco.MjModel, body: int) -> range:
    """Ids of a body's joints."""
    first = int(model.body_jntadr[body])
    return range(first, first + int(model.body_jntnum[body]))


def prim_name(name: str) -> str:
    """A USD name for a MuJoCo name."""
    valid = re.sub(r"\W", "_", name)
    return valid if valid and not valid[0].isdigit() else f"_{valid}"


def _kind(model: mujoco.MjModel, root: int, bodies: list[int], joints: list[int], actuated: set[int]) -> Kind:
    name = model.body(root).name
    types = {int(model.jnt_type[joint]) for joint in joints}
    if int(mujoco.mjtJoint.mjJNT_BALL) in types:
        raise UnsupportedTaskError(f"{name} has a ball joint, which is not converted")
    if any(len(joints_of(model, body)) > 1 for body in bodies):
        raise UnsupportedTaskError(f"{name} has a body with several joints, which is not converted")
    if int(mujoco.mjtJoint.mjJNT_FREE) in types:
        if len(joints) > 1:
            raise UnsupportedTaskError(f"{name} is free and has parts that move, which is not converted")
        return Kind.OBJECT
    if not joints:
        return Kind.ARENA
    return Kind.ROBOT if actuated & set(bodies) else Kind.FIXTURE
