"""Height maps: how high things stand, cell by cell, seen from above and turned with the hand.

What comes straight down meets nothing but what a height map shows. Every colliding shape of LIBERO's scenes is a box, or is
taken as one. Tables and floors are left out: callers bring their height along.
"""

from collections.abc import Sequence

import numpy as np

from vla_envs.libero.privileged import PrivilegedView, SceneGeometry

CELL = 0.004
"""Side of a cell in metres."""
HALF_CELLS = 50
"""Maps are squares of 2 * HALF_CELLS + 1 cells."""
_ARENA_SIZE = 0.6
"""Extent in metres from which a body counts as arena."""


def surface_points(geometry: SceneGeometry, body: int) -> np.ndarray:
    """(V, 3) points on all colliding boxes of one body, in its frame, closer together than a cell."""
    clouds = [_box_points(corners) for corners in geometry.shapes(body)]
    return np.concatenate(clouds) if clouds else np.zeros((0, 3))


def _box_points(corners: np.ndarray) -> np.ndarray:
    """(V, 3) points of a box given by its corners in `shapes`'s order."""
    origin, sides = corners[0], (corners[4] - corners[0], corners[2] - corners[0], corners[1] - corners[0])
    steps = [np.linspace(0.0, 1.0, 2 + int(np.linalg.norm(side) / CELL)) for side in sides]
    faces = []
    for axis in range(3):
        first, second = (other for other in range(3) if other != axis)
        a, b = (grid.reshape(-1, 1) for grid in np.meshgrid(steps[first], steps[second]))
        plane = origin + a * sides[first] + b * sides[second]
        faces += [plane, plane + sides[axis]]
    return np.concatenate(faces)


def is_arena(geometry: SceneGeometry, body: int) -> bool:
    """Whether a body is a table, a floor or a wall."""
    shapes = geometry.shapes(body)
    if not shapes:
        return False
    stacked = np.concatenate(shapes)
    return float(np.ptp(stacked, axis=0).max()) > _ARENA_SIZE


class Clouds:
    """Surface points of a scene's bodies in the world, as a view has them.

    Args:
        view: Where everything is.
    """

    def __init__(self, view: PrivilegedView) -> None:
        self._view = view
        geometry = view.geometry
        self.bodies = obstacle_bodies(geometry)

    def of(self, bodies: Sequence[int], around: np.ndarray, radius: float) -> np.ndarray:
        """(V, 3) points of these bodies no further than `radius` from `around` (2,), horizontally."""
        found = [np.zeros((0, 3))]
        for body in bodies:
            points = self._view.body(body).out(_cached_points(self._view.geometry, body))
            near = (np.abs(points[:, :2] - around[:2]) < radius).all(axis=1)
            found.append(points[near])
        return np.concatenate(found)


def obstacle_bodies(geometry: SceneGeometry) -> list[int]:
    """All bodies that collide, but for the robot and the arena."""
    if "obstacles" not in geometry.derived:
        model = geometry.model
        names = [model.body(body).name for body in range(model.nbody)]
        geometry.derived["obstacles"] = [
            body
            for body in range(1, model.nbody)
            if geometry.shapes(body) and not names[body].startswith(("robot0_", "gripper0_", "mount0_"))
            if not is_arena(geometry, body)
        ]
    return geometry.derived["obstacles"]


def _cached_points(geometry: SceneGeometry, body: int) -> np.ndarray:
    key = ("points", body)
    if key not in geometry.derived:
        geometry.derived[key] = surface_points(geometry, body)
    return geometry.derived[key]


def height_map(points: np.ndarray, centre: np.ndarray, yaw: float, *, highest: bool = True) -> np.ndarray:
    """(2 H + 1, 2 H + 1) float64: the highest (or lowest) point per cell, -inf (inf) where there is none.

    Args:
        points: (V, 3).
        centre: (2,) of the middle cell.
        yaw: The first index runs along (cos, sin) of it: across the fingers. The second along (-sin, cos): as they open.
        highest: False: the lowest.
    """
    size = 2 * HALF_CELLS + 1
    cosine, sine = np.cos(yaw), np.sin(yaw)
    flat = points[:, :2] - centre[:2]
    first = np.rint((flat[:, 0] * cosine + flat[:, 1] * sine) / CELL).astype(int) + HALF_CELLS
    second = np.rint((flat[:, 1] * cosine - flat[:, 0] * sine) / CELL).astype(int) + HALF_CELLS
    inside = (first >= 0) & (first < size) & (second >= 0) & (second < size)
    heights = np.full(size * size, -np.inf if highest else np.inf)
    gather = np.maximum if highest else np.minimum
    gather.at(heights, first[inside] * size + second[inside], points[inside, 2])
    return heights.reshape(size, size)


def window_max(heights: np.ndarray, rows: tuple[float, float], columns: tuple[float, float]) -> np.ndarray:
    """Per cell the maximum over a window given by its offsets in metres; beyond the map there is nothing (-inf)."""
    (top, bottom), (left, right) = (tuple(int(np.rint(edge / CELL)) for edge in edges) for edges in (rows, columns))
    return _shifted_max(_shifted_max(heights, top, bottom, 0), left, right, 1)


def _shifted_max(heights: np.ndarray, low: int, high: int, axis: int) -> np.ndarray:
    reach = max(abs(low), abs(high))
    padding = [(0, 0), (0, 0)]
    padding[axis] = (reach, reach)
    padded = np.pad(heights, padding, constant_values=-np.inf)
    windows = np.lib.stride_tricks.sliding_window_view(padded, high - low + 1, axis=axis)
    start = reach + low
    chosen = windows[start : start + heights.shape[0]] if axis == 0 else windows[:, start : start + heights.shape[1]]
    return chosen.max(axis=-1)
