"""How high the hand must be to pass over what stands between here and there."""

from collections.abc import Set

import numpy as np

from vla_envs.libero.expert.heights import obstacle_bodies
from vla_envs.libero.privileged import PrivilegedView

_SAMPLES = np.linspace(0.0, 1.0, 9)[:, None]


def world_boxes(view: PrivilegedView) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Ids (M,), and lowest and highest corners (M, 3), of the boxes along the world's axes around each obstacle."""
    derived = view.geometry.derived
    if "boxes" not in derived:
        bodies = obstacle_bodies(view.geometry)
        derived["boxes"] = np.array(bodies, int), np.array([_corners(view, body) for body in bodies]).reshape(-1, 8, 3)
    bodies, corners = derived["boxes"]
    world = np.einsum("mij,mkj->mki", view.body_rotations[bodies], corners) + view.body_positions[bodies][:, None]
    return bodies, world.min(axis=1), world.max(axis=1)


def highest_between(view: PrivilegedView, start: np.ndarray, goal: np.ndarray, *, ignoring: Set[int], margin: float) -> float:
    """Height in metres of the highest obstacle within `margin` of the straight way, horizontally; -inf if there is none."""
    bodies, low, high = world_boxes(view)
    points = start[:2] + _SAMPLES * (goal[:2] - start[:2])
    beside = np.maximum(low[:, None, :2] - points, points - high[:, None, :2]).max(axis=2)  # (M, samples)
    met = (beside < margin).any(axis=1) & ~np.isin(bodies, list(ignoring))
    return float(high[met, 2].max(initial=-np.inf))


def _corners(view: PrivilegedView, body: int) -> np.ndarray:
    stacked = np.concatenate(view.geometry.shapes(body))
    low, high = stacked.min(axis=0), stacked.max(axis=0)
    return np.array([[x, y, z] for x in (low[0], high[0]) for y in (low[1], high[1]) for z in (low[2], high[2])])
