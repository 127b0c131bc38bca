"""From a task's goal predicates to the skills that make them true, or the reason why none can."""

from typing import Protocol

import numpy as np

from vla_envs.errors import UnsupportedTaskError
from vla_envs.libero.expert.motion import Target
from vla_envs.libero.expert.place import PickAndPlace, Place
from vla_envs.libero.expert.push import PushShut, is_hinge, joint_body
from vla_envs.libero.goals import InSite, JointPast, OnObject, OnSite, Predicate
from vla_envs.libero.privileged import PrivilegedView


class Skill(Protocol):
    """Works towards one predicate. It has no memory: it decides from what is."""

    def decide(self, view: PrivilegedView) -> Target:
        """Where the hand should be next."""
        ...


def make_skill(view: PrivilegedView, rng: np.random.Generator) -> Skill:
    """The skill for a task's goal.

    Raises:
        UnsupportedTaskError: No skill reaches it.
    """
    reason = why_not(view)
    if reason:
        raise UnsupportedTaskError(f"the expert cannot do {view.suite} task {view.task_id} ({view.instruction}): {reason}")
    return _skill(view, view.goal.predicates[0], rng)


def _skill(view: PrivilegedView, predicate: Predicate, rng: np.random.Generator) -> Skill:
    if isinstance(predicate, JointPast):
        return PushShut(
            body=joint_body(view, predicate.qpos_addresses[0]),
            sign=1.0 if predicate.comparison.startswith(">") else -1.0,
            reach=rng.uniform(0.65, 0.8),
            depth=rng.uniform(0.04, 0.07),
            speed=rng.uniform(0.8, 1.0),
        )
    assert isinstance(predicate, OnObject | OnSite | InSite)
    return PickAndPlace(predicate.body, _place(view, predicate), rng)


def _place(view: PrivilegedView, predicate: OnObject | OnSite | InSite) -> Place:
    if isinstance(predicate, OnObject):
        return Place(body=predicate.support, position=np.zeros(3), room=(0.0, 0.0), on_body=True)
    body = int(view.geometry.model.site_bodyid[predicate.site])
    middle = view.body(body).into(view.site(predicate.site).position)
    return Place(body=body, position=middle, room=(predicate.size[0], predicate.size[1]), on_body=False)


def why_not(view: PrivilegedView) -> str:
    """Why the task is out of reach; "" if it is not."""
    reasons = [reason for predicate in view.goal.predicates if (reason := _why_not(view, predicate))]
    return reasons[0] if reasons else "" if len(view.goal.predicates) == 1 else "it has several goals"


def _why_not(view: PrivilegedView, predicate: Predicate) -> str:
    if isinstance(predicate, JointPast) and predicate.every and is_hinge(view, joint_body(view, predicate.qpos_addresses[0])):
        return ""
    if isinstance(predicate, OnObject | OnSite | InSite):
        return ""
    return f"no skill for {type(predicate).__name__}"
