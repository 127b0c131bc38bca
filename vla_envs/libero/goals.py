"""Goal predicates as functions over arrays of states: the same code judges slots of the C engine and worlds on a GPU."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, kw_only=True)
class GoalInputs:
    """What a goal may look at, for N states of one scene. Positions in metres, world frame."""

    qpos: np.ndarray
    """(N, nq) float64."""
    body_xpos: np.ndarray
    """(N, nbody, 3) float64."""
    site_xpos: np.ndarray
    """(N, nsite, 3) float64."""
    site_xmat: np.ndarray
    """(N, nsite, 9) float64, row-major rotation."""
    touching: np.ndarray
    """(N, P) bool: whether any geom of `Goal.contact_pairs[p]`'s first set touches any of its second set."""


@dataclass(frozen=True, kw_only=True)
class Goal:
    """A conjunction of predicates, serialisable to JSON."""

    predicates: tuple
    contact_pairs: tuple[tuple[np.ndarray, np.ndarray], ...]
    """P pairs of geom-id sets whose contact the predicates ask about."""

    def holds(self, states: GoalInputs) -> np.ndarray:
        """(N,) bool: whether the goal holds in each state."""
        raise NotImplementedError
