"""Goal predicates as functions over arrays of states: the same code judges slots of the C engine and worlds on a GPU.

Each predicate computes what LIBERO's predicate of that name computes, tolerances included. Shape letters: N states,
B bodies, S sites, P contact pairs.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

ON_OBJECT_RADIUS = 0.03
"""Largest horizontal distance in m between the centres of two stacked objects."""
ON_SITE_HEIGHT = 0.10
"""Largest height in m of an object's centre above a region's top."""
UP_HEIGHT = 1.0
"""Height in m from which an object counts as lifted."""


@dataclass(frozen=True, kw_only=True)
class GoalInputs:
    """What goals are judged by, for N states of one scene. Positions in metres, world frame."""

    qpos: np.ndarray
    """(N, nq) float64."""
    body_xpos: np.ndarray
    """(N, B, 3) float64."""
    site_xpos: np.ndarray
    """(N, S, 3) float64."""
    site_xmat: np.ndarray
    """(N, S, 9) float64, row-major rotation."""
    touching: np.ndarray
    """(N, P) bool: whether any geom of `Goal.contact_pairs[p]`'s first set touches any of its second set."""


class Predicate(ABC):
    """A condition on a state."""

    @abstractmethod
    def holds(self, states: GoalInputs) -> np.ndarray:
        """(N,) bool."""


@dataclass(frozen=True, kw_only=True)
class OnObject(Predicate):
    """One object lies on another: touching it, not lower, centres close."""

    body: int
    support: int
    contact: int
    """Index of the contact pair of the two."""

    def holds(self, states: GoalInputs) -> np.ndarray:
        above, below = states.body_xpos[:, self.body], states.body_xpos[:, self.support]
        apart = np.linalg.norm(below[:, :2] - above[:, :2], axis=1)
        return (below[:, 2] <= above[:, 2]) & states.touching[:, self.contact] & (apart < ON_OBJECT_RADIUS)


@dataclass(frozen=True, kw_only=True)
class OnSite(Predicate):
    """An object is over a region, and touches what the region belongs to."""

    body: int
    site: int
    size: tuple[float, ...]
    """Half extents of the region in metres, along its own axes."""
    contact: int
    """Index of the contact pair of the object and the region's parent; -1 if the region belongs to the arena."""

    def holds(self, states: GoalInputs) -> np.ndarray:
        rotation = states.site_xmat[:, self.site].reshape(-1, 3, 3)
        offset = np.einsum("nij,nj->ni", rotation, states.body_xpos[:, self.body] - states.site_xpos[:, self.site])
        height = offset[:, 2]
        over = (self.size[2] - 0.005 < height) & (height < self.size[2] + ON_SITE_HEIGHT)
        inside = (np.abs(offset[:, :2]) < np.array(self.size[:2])).all(axis=1)
        return over & inside & (states.touching[:, self.contact] if self.contact >= 0 else True)


@dataclass(frozen=True, kw_only=True)
class InSite(Predicate):
    """An object's centre is inside a region's box."""

    body: int
    site: int
    size: tuple[float, ...]
    """Half extents of the region in metres, along its own axes."""

    def holds(self, states: GoalInputs) -> np.ndarray:
        rotation = states.site_xmat[:, self.site].reshape(-1, 3, 3)
        extent = np.abs(rotation @ np.array(self.size))
        centre, position = states.site_xpos[:, self.site], states.body_xpos[:, self.body]
        lowest = centre - extent
        lowest[:, 2] -= 0.01
        return ((position > lowest) & (position < centre + extent)).all(axis=1)


@dataclass(frozen=True, kw_only=True)
class JointPast(Predicate):
    """Joints of an articulated object are beyond a threshold (open, closed, turned on, turned off)."""

    qpos_addresses: tuple[int, ...]
    comparison: str
    """One of < <= > >=."""
    threshold: float
    """Metres or radians."""
    every: bool
    """True: all joints must be beyond it; False: one is enough."""

    def holds(self, states: GoalInputs) -> np.ndarray:
        joints = states.qpos[:, list(self.qpos_addresses)]
        compare = {"<": np.less, "<=": np.less_equal, ">": np.greater, ">=": np.greater_equal}[self.comparison]
        past = compare(joints, self.threshold)
        return past.all(axis=1) if self.every else past.any(axis=1)


@dataclass(frozen=True, kw_only=True)
class Lifted(Predicate):
    """An object's centre is a metre above the world's floor."""

    body: int

    def holds(self, states: GoalInputs) -> np.ndarray:
        return states.body_xpos[:, self.body, 2] >= UP_HEIGHT


@dataclass(frozen=True, kw_only=True)
class Always(Predicate):
    """LIBERO's `On` for target zones, which holds in every state: LIBERO does not check it."""

    def holds(self, states: GoalInputs) -> np.ndarray:
        return np.ones(len(states.qpos), bool)


_KINDS: dict[str, type[Predicate]] = {kind.__name__: kind for kind in (OnObject, OnSite, InSite, JointPast, Lifted, Always)}


@dataclass(frozen=True, kw_only=True)
class Goal:
    """A conjunction of predicates."""

    predicates: tuple[Predicate, ...]
    contact_pairs: tuple[tuple[np.ndarray, np.ndarray], ...]
    """P pairs of geom-id sets whose contact the predicates ask about."""

    def holds(self, states: GoalInputs) -> np.ndarray:
        """(N,) bool: whether the goal holds in each state."""
        verdict = np.ones(len(states.qpos), bool)
        for predicate in self.predicates:
            verdict &= predicate.holds(states)
        return verdict


def goal_to_json(goal: Goal) -> dict[str, Any]:
    """The goal as plain JSON data."""
    return {
        "predicates": [
            {"kind": type(predicate).__name__} | {f.name: getattr(predicate, f.name) for f in fields(predicate)}  # type: ignore[arg-type]
            for predicate in goal.predicates
        ],
        "contact_pairs": [[first.tolist(), second.tolist()] for first, second in goal.contact_pairs],
    }


def goal_from_json(data: dict[str, Any]) -> Goal:
    """Rebuild a goal that `goal_to_json` wrote.

    Raises:
        KeyError, TypeError: The data are of another format.
    """
    predicates = []
    for entry in data["predicates"]:
        arguments = {
            name: tuple(value) if isinstance(value, list) else value for name, value in entry.items() if name != "kind"
        }
        predicates.append(_KINDS[entry["kind"]](**arguments))
    pairs = tuple((np.array(first, np.int32), np.array(second, np.int32)) for first, second in data["contact_pairs"])
    return Goal(predicates=tuple(predicates), contact_pairs=pairs)
