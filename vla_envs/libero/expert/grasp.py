"""Where to take hold of an object from above, found on its height map: between the fingers something, under them nothing.

The hand points down. At yaw 0 its fingers open along the world's y axis.
"""

from dataclasses import dataclass

import numpy as np

from vla_envs.libero.expert.heights import CELL, HALF_CELLS, Clouds, height_map, window_max
from vla_envs.libero.privileged import PrivilegedView

TIP = 0.012
"""How far the fingers reach below the point that actions move, metres."""
PALM = 0.028
"""How far above that point the palm begins."""
PALM_HALF = (0.024, 0.103)
"""Half extents of the palm's lower side, across the fingers and along their opening."""
_HAND, _HAND_HALF = 0.07, (0.034, 0.108)
"""The same of the hand, which is wider than the palm."""
_FINGER_OUTER, _FINGER_INNER, _FINGER_HALF = 0.072, 0.035, 0.012
"""Where open fingers are along their opening, and half their width across."""
_WIDEST = 0.072
"""Of what fits between the fingers, metres."""
_DEPTHS = (0.036, 0.028, 0.02, 0.012)
"""How far the fingertips go below the top of what they hold, metres."""
_OFF_CENTRE = (0.006, 0.022)
"""How far what they hold may be from the middle between the fingers, metres: nearly nothing, unless there is no such grasp."""
_YAWS = np.linspace(-np.pi / 2, np.pi / 2, 16, endpoint=False)
_MARGIN = 0.010
"""Beside the fingers and the palm, metres: what is nearer is avoided where that costs little."""


@dataclass(frozen=True, kw_only=True)
class Grasp:
    """How to hold an object, in the object's own frame, so that it holds wherever the object goes."""

    position: np.ndarray
    """(3,) of the point between the fingertips."""
    opening: np.ndarray
    """(3,) unit vector: the way the fingers open."""
    width: float
    """Of what is between the fingers, metres."""
    depth: float
    """How far below the top of what they hold the fingertips are, metres."""


def find_grasp(view: PrivilegedView, body: int, rng: np.random.Generator, *, floor: float | None = None) -> Grasp | None:
    """The best grasp from above of an object as it lies; None if there is none.

    Args:
        view: Where everything is.
        body: The object.
        rng: Draws which of about equally good grasps is taken.
        floor: Height in metres below which fingertips must not go; None: just above where the object stands.
    """
    pose = view.body(body)
    clouds = Clouds(view)
    parts = view.geometry.parts(body)
    own = clouds.of(parts, pose.position, 0.2)
    other = clouds.of([item for item in clouds.bodies if item not in parts], pose.position, 0.3)
    lowest = own[:, 2].min() + 0.004 if floor is None else floor
    middle = (own[:, :2].min(axis=0) + own[:, :2].max(axis=0)) / 2
    for off_centre in _OFF_CENTRE:
        best, best_cost = None, np.inf
        for yaw in _YAWS:
            found = _best_at(own, other, middle, yaw, lowest, off_centre, rng)
            if found is not None and found[0] < best_cost:
                best_cost, (point, width, depth) = found[0], found[1]
                opening = np.array([-np.sin(yaw), np.cos(yaw), 0.0])
                best = Grasp(position=pose.into(point), opening=opening @ pose.rotation, width=width, depth=depth)
        if best is not None:
            return best
    return None


def _best_at(
    own: np.ndarray,
    other: np.ndarray,
    middle: np.ndarray,
    yaw: float,
    lowest: float,
    off_centre: float,
    rng: np.random.Generator,
) -> tuple[float, tuple[np.ndarray, float, float]] | None:
    """Cost, and (point, width, depth), of the best grasp at one yaw."""
    mine, others = height_map(own, middle, yaw), height_map(other, middle, yaw)
    everything = np.maximum(mine, others)
    size = 2 * HALF_CELLS + 1
    half = _FINGER_HALF
    strip_top = window_max(mine, (-0.008, 0.008), (0.0, 0.0))
    top = window_max(strip_top, (0.0, 0.0), (-0.028, 0.028))

    def beside(margin: float) -> np.ndarray:
        rows, inner, outer = (-half - margin, half + margin), _FINGER_INNER - margin, _FINGER_OUTER + margin
        return np.maximum(window_max(everything, rows, (inner, outer)), window_max(everything, rows, (-outer, -inner)))

    def above(heights: np.ndarray, half_extents: tuple[float, float], margin: float = 0.0) -> np.ndarray:
        across, along = (extent + margin for extent in half_extents)
        return window_max(heights, (-across, across), (-along, along))

    fingers, fingers_near = beside(0.0), window_max(others, (-half - _MARGIN, half + _MARGIN), (-0.082, 0.082))
    palm, hand = above(everything, PALM_HALF), above(everything, _HAND_HALF)
    palm_near = above(others, PALM_HALF, _MARGIN)
    offsets = (np.arange(size) - HALF_CELLS) * CELL
    away = np.hypot(offsets[:, None], offsets[None, :])
    best: tuple[float, tuple[np.ndarray, float, float]] | None = None
    for depth in _DEPTHS:
        tip = np.maximum(top - depth, lowest)
        free = np.isfinite(top) & (top - tip > 0.009) & (fingers < tip - 0.002) & (palm < tip + TIP + PALM - 0.001)
        free &= hand < tip + TIP + _HAND
        if not free.any():
            continue
        cost = away + 0.02 * abs(yaw) + 0.6 * (0.036 - (top - tip)) + rng.uniform(0, 0.004, free.shape)
        cost += 0.03 * (fingers_near > tip - 0.004) + 0.02 * (palm_near > tip + TIP + PALM - 0.005)
        cost[~free] = np.inf
        for index in np.argsort(cost, axis=None)[: int(1e4 * off_centre)]:
            row, column = divmod(int(index), size)
            if not np.isfinite(cost[row, column]) or (best is not None and cost[row, column] >= best[0]):
                break
            span = _span(mine, row, column, tip[row, column] + 0.009)
            if span is None:
                continue
            low, high = span
            width, centre = high - low + CELL, (low + high) / 2
            if width > _WIDEST or abs(centre) > off_centre:
                continue
            along, opened = offsets[row], offsets[column] + (centre if abs(centre) < _OFF_CENTRE[0] else 0.0)
            cosine, sine = np.cos(yaw), np.sin(yaw)
            point = np.array(
                [
                    middle[0] + along * cosine - opened * sine,
                    middle[1] + along * sine + opened * cosine,
                    tip[row, column] + TIP,
                ]
            )
            best = float(cost[row, column]), (point, float(width), float(top[row, column] - tip[row, column]))
            break
    return best


def _span(mine: np.ndarray, row: int, column: int, level: float) -> tuple[float, float] | None:
    """Where along the opening the object stands above `level` between the fingers; None if the pads would hardly touch it."""
    reach = int(_FINGER_INNER / CELL) + 1
    strip = mine[max(0, row - 2) : row + 3, max(0, column - reach) : column + reach + 1] > level
    if strip.any(axis=1).sum() < 4:
        return None
    columns = np.flatnonzero(strip.any(axis=0)) - reach
    return float(columns[0] * CELL), float(columns[-1] * CELL)
