"""From a task's goal predicates to the skills that make them true, in an order that works, or the reason why none can."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from vla_envs.errors import UnsupportedTaskError
from vla_envs.libero.expert.joints import is_drawer, is_hinge, joint_body
from vla_envs.libero.expert.motion import Target
from vla_envs.libero.expert.place import PickAndPlace, Place
from vla_envs.libero.expert.pull import Pull
from vla_envs.libero.expert.push import Push
from vla_envs.libero.expert.turn import Turn
from vla_envs.libero.goals import InSite, JointPast, OnObject, OnSite, Predicate
from vla_envs.libero.privileged import PrivilegedView

_DOOR_SIZE = 0.2
"""Extent in metres from which a part that turns is a door; smaller ones are knobs."""


class Skill(Protocol):
    """Works towards one predicate. It has no memory: it decides from what is."""

    def prepare(self, view: PrivilegedView) -> None:
        """Raise `UnsupportedTaskError` if it cannot begin."""
        ...

    def done(self, view: PrivilegedView) -> bool:
        """Whether its predicate is met and the hand free for the next."""
        ...

    def decide(self, view: PrivilegedView) -> Target:
        """Where the hand should be next."""
        ...


def make_skills(view: PrivilegedView, rng: np.random.Generator) -> list[Skill]:
    """The skills for a task's goal, in their order.

    Raises:
        UnsupportedTaskError: No skill reaches it.
    """
    reason = why_declined(view)
    if reason:
        raise UnsupportedTaskError(f"the expert cannot do {view.suite} task {view.task_id} ({view.instruction}): {reason}")
    return [_skill(view, predicate, rng) for predicate in _in_order(view)]


def why_declined(view: PrivilegedView) -> str:
    """Why the expert cannot do the task from here; "" if it can."""
    reasons = [reason for predicate in view.goal.predicates if (reason := why_not(view, predicate))]
    if reasons:
        return reasons[0]
    try:
        for predicate in _in_order(view):
            _skill(view, predicate, np.random.default_rng(0)).prepare(view)
    except UnsupportedTaskError as error:
        return str(error)
    return ""


def next_target(skills: Sequence[Skill], view: PrivilegedView) -> Target:
    """What the first skill that is not done decides; the last one's, if all are."""
    waiting = [skill for skill in skills if not skill.done(view)]
    return (waiting or skills[-1:])[0].decide(view)


def why_not(view: PrivilegedView, predicate: Predicate) -> str:
    """Why a predicate is out of reach; "" if it is not."""
    if isinstance(predicate, JointPast):
        body = joint_body(view, predicate.qpos_addresses[0])
        if is_hinge(view, body) and not predicate.every and _is_door(view, body):
            return f"it has no skill for opening doors ({view.name(body)})"
        return ""
    if isinstance(predicate, OnObject | OnSite | InSite):
        return ""
    return f"it has no skill for {type(predicate).__name__}"


def _in_order(view: PrivilegedView) -> list[Predicate]:
    """Drawers are opened before things are put in and closed after; what carries another thing is placed before it."""
    predicates = view.goal.predicates
    places = [item for item in predicates if isinstance(item, OnObject | OnSite | InSite)]
    joints = [item for item in predicates if isinstance(item, JointPast)]
    containers = {_place(view, item).body for item in places}
    last = [item for item in joints if item.every and joint_body(view, item.qpos_addresses[0]) in containers]
    opened = {joint_body(view, item.qpos_addresses[0]) for item in joints if not item.every}
    first: list[Predicate] = [item for item in joints if item not in last]
    for body in sorted(containers - opened):
        first += _opening(view, body)
    carriers = {item.support for item in places if isinstance(item, OnObject)}
    return [*first, *sorted(places, key=lambda item: item.body not in carriers), *last]


def _opening(view: PrivilegedView, body: int) -> list[Predicate]:
    """That a drawer is open, if `body` is a drawer and it is not."""
    if not is_drawer(view, body):
        return []
    model = view.geometry.model
    joint = model.body_jntadr[body]
    end = max(model.jnt_range[joint], key=abs)
    address = int(model.jnt_qposadr[joint])
    predicate = JointPast(
        qpos_addresses=(address,), comparison="<" if end < 0 else ">", threshold=float(0.8 * end), every=False
    )
    halfway = abs(view.qpos[address]) > 0.5 * abs(end)
    return [] if halfway else [predicate]


def _skill(view: PrivilegedView, predicate: Predicate, rng: np.random.Generator) -> Skill:
    if isinstance(predicate, OnObject | OnSite | InSite):
        return PickAndPlace(predicate.body, _place(view, predicate), rng)
    assert isinstance(predicate, JointPast)
    body = joint_body(view, predicate.qpos_addresses[0])
    if is_hinge(view, body) and not _is_door(view, body):
        return Turn(body, predicate, rng)
    speed = rng.uniform(0.85, 1.0)
    if not predicate.every:
        return Pull(body=body, predicate=predicate, lean=rng.uniform(1.25, 1.45), speed=speed)
    return Push(
        body=body,
        predicate=predicate,
        reach=rng.uniform(0.65, 0.8),
        depth=rng.uniform(0.04, 0.07),
        lean=rng.uniform(0.5, 0.7),
        lead=0.08,
        speed=speed,
    )


def _is_door(view: PrivilegedView, body: int) -> bool:
    return bool(view.box(body).size.max() > _DOOR_SIZE)


def _place(view: PrivilegedView, predicate: OnObject | OnSite | InSite) -> Place:
    if isinstance(predicate, OnObject):
        return Place(body=predicate.support, site=-1, size=(0.0, 0.0, 0.0), roofless=False, inside=False)
    model = view.geometry.model
    body = int(model.site_bodyid[predicate.site])
    root = int(model.body_rootid[body])
    on_table = root not in (*view.objects.values(), *view.fixtures.values())
    inside = isinstance(predicate, InSite)
    return Place(
        body=0 if on_table else body,
        site=predicate.site,
        size=predicate.size,
        roofless=inside and not _opening(view, body),
        inside=inside,
    )
