"""Where stock LIBERO may put a task's fixtures at a reset: read from the task's file, and drawn anew for an episode.

A file says for each fixture that stands on a table or on the floor: a rectangle, relative to the middle of the workspace, and
least and largest yaw. A compiled scene holds one draw of these. Its movable objects, whose rectangles it does hold, tell where
that middle is.

Invariant: heights, and fixtures that stand on others, stay as the scene has them.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mujoco
import numpy as np

from vla_envs.libero.scene import Scene
from vla_envs.libero.suites import benchmark_suite, quiet

_QUARTER = np.pi / 2


@dataclass(frozen=True, kw_only=True)
class FixturePlacement:
    """Where one fixture may stand."""

    body: int
    """Its root."""
    ranges: np.ndarray
    """(R, 4) float64: rectangles x_min, y_min, x_max, y_max in m, world frame; its origin lies in one of them."""
    yaw_range: np.ndarray
    """(2,) float64, rad: about the vertical, relative to how it stands in the scene."""


def fixture_placements(scene: Scene) -> tuple[FixturePlacement, ...]:
    """Of all fixtures that a reset of stock LIBERO moves; reads the task's file.

    Raises:
        MissingDependencyError: LIBERO is not installed.
    """
    with quiet():
        file = Path(benchmark_suite(scene.suite).get_task_bddl_file_path(scene.task_id))
    problem = {str(part[0]).lower(): part[1:] for part in _parse(file.read_text()) if isinstance(part, list)}
    regions = {}
    for name, *parts in problem[":regions"]:
        facts = {str(part[0]).lower(): part[1:] for part in parts}
        if ":ranges" in facts:
            regions[f"{facts[':target'][0]}_{name}"] = facts
    placed = {state[1]: state[2] for state in problem[":init"] if str(state[0]).lower() == "on" and state[2] in regions}
    middle = _middle(scene, placed, regions)
    placements = []
    for name, region in placed.items():
        body = mujoco.mj_name2id(scene.model, mujoco.mjtObj.mjOBJ_BODY, f"{name}_main")
        if body < 0 or scene.model.body_weldid[body] != 0 or middle is None:
            continue
        ranges = _numbers(regions[region][":ranges"]) + np.tile(middle, 2)
        (yaws,) = _numbers(regions[region].get(":yaw_rotation", [[["0", "0"]]]))
        placements.append(FixturePlacement(body=body, ranges=ranges, yaw_range=np.sort(yaws) - _yaw(scene.model, body, yaws)))
    return tuple(placements)


def draw_fixtures(placements: tuple[FixturePlacement, ...], model: mujoco.MjModel, seed: int) -> dict[int, Any]:
    """Body -> position (3,) in m and quaternion (4,) w x y z of each fixture, always the same for this seed.

    Args:
        placements: Where they may stand.
        model: The scene's, where they stand as compiled.
        seed: Of the draw.
    """
    random = np.random.default_rng(seed)
    poses = {}
    for placement in placements:
        x_min, y_min, x_max, y_max = placement.ranges[random.integers(len(placement.ranges))]
        position = np.array([*random.uniform((x_min, y_min), (x_max, y_max)), model.body_pos[placement.body, 2]])
        turn, quaternion = np.zeros(4), np.zeros(4)
        mujoco.mju_axisAngle2Quat(turn, np.array([0.0, 0.0, 1.0]), random.uniform(*placement.yaw_range))
        mujoco.mju_mulQuat(quaternion, turn, model.body_quat[placement.body])
        poses[placement.body] = position, quaternion
    return poses


def _middle(scene: Scene, placed: dict[str, str], regions: dict[str, Any]) -> np.ndarray | None:
    """(2,) m: what rectangles of the task's file are relative to; None if no object tells."""
    for placement in scene.placements:
        region = placed.get(placement.object_name)
        if region is not None and placement.site < 0 and not placement.attached_to:
            theirs, ours = _numbers(regions[region][":ranges"])[0], placement.ranges[0]
            return ((ours[:2] + ours[2:]) - (theirs[:2] + theirs[2:])) / 2  # objects keep half their width from all four edges
    return None


def _yaw(model: mujoco.MjModel, body: int, yaws: np.ndarray) -> float:
    """The yaw that the scene has drawn: quarter turns apart, those of the fixture's own frame, it lies between the bounds."""
    w, _, _, z = model.body_quat[body]
    middle, yaw = float(np.mean(yaws)), 2 * np.arctan2(z, w)
    return float(yaw - _QUARTER * round((yaw - middle) / _QUARTER))


def _numbers(rows: Any) -> np.ndarray:
    """(R, n) from lists of lists of texts."""
    return np.array(rows[0], np.float64)


def _parse(text: str) -> list[Any]:
    """Nested lists of the words of a file in LIBERO's language, which is Lisp's."""
    words = iter(re.findall(r"[()]|[^\s()]+", re.sub(r";[^\n]*", "", text)))

    def read(rest: Iterator[str]) -> list[Any]:
        items: list[Any] = []
        for word in rest:
            if word == ")":
                break
            items.append(read(rest) if word == "(" else word)
        return items

    (problem,) = read(words)
    return problem
