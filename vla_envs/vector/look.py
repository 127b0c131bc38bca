"""How one episode looks, though its slot shares a model with others: lights, materials and cameras, drawn from a seed.

    draw_look(model, what, seed) --Look--> poses(): where lights and cameras are; worn_by(model): materials, for an instant

Invariant: a look changes no physics, and leaves the shared model as it was. Lights, materials and cameras have random numbers
of their own: what one draws depends neither on which others are drawn, nor on which cameras an env has.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import pairwise

import mujoco
import numpy as np

from vla_envs.vector.cameras import Camera
from vla_envs.vector.randomization import Randomization

_LIGHTS, _MATERIALS, _CAMERAS = range(3)
"""Streams of random numbers."""
_LIGHT_FIELDS = ("light_ambient", "light_diffuse", "light_specular")
_ROBOT = ("robot", "gripper", "mount")
"""What names of the robot's bodies begin with."""
_PLANE, _BOX = int(mujoco.mjtGeom.mjGEOM_PLANE), int(mujoco.mjtGeom.mjGEOM_BOX)
_MESH = int(mujoco.mjtGeom.mjGEOM_MESH)
_VISIBLE_GROUP = 1


@dataclass(frozen=True, kw_only=True)
class Look:
    """How one episode looks. L lights and C cameras of the model, M materials, G geoms."""

    worn: Mapping[str, np.ndarray]
    """Fields of the model as this look has them: lights' colours (L, 3), `mat_rgba` (M, 4), `geom_matid` (G,)."""
    light_shifts: np.ndarray
    """(L, 3) m, world frame."""
    light_turns: np.ndarray
    """(L, 3, 3): rotations, world frame."""
    camera_shifts: np.ndarray
    """(C, 3) m, in each camera's own frame."""
    camera_turns: np.ndarray
    """(C, 3, 3): rotations, in each camera's own frame."""
    own_camera: tuple[np.ndarray, np.ndarray]
    """The same of cameras that are not the model's: (3,) and (3, 3)."""

    @contextmanager
    def worn_by(self, model: mujoco.MjModel) -> Iterator[None]:
        """Make the model look so for as long as this lasts; nobody else may look at it meanwhile."""
        before = {name: getattr(model, name).copy() for name in self.worn}
        try:
            for name, values in self.worn.items():
                getattr(model, name)[:] = values
            yield
        finally:
            for name, values in before.items():
                getattr(model, name)[:] = values

    def poses(self, flat: np.ndarray, model: mujoco.MjModel) -> np.ndarray:
        """What `copy_poses` wrote, with lights and cameras where this look has them; a copy."""
        seen = flat.copy()
        start = 12 * (model.nbody + model.ngeom + model.nsite)
        sizes = np.cumsum([start, 3 * model.ncam, 9 * model.ncam, 3 * model.nlight, 3 * model.nlight])
        positions, rotations, places, directions = (seen[a:b] for a, b in pairwise(sizes))
        positions, rotations = positions.reshape(-1, 3), rotations.reshape(-1, 3, 3)
        positions += np.einsum("cij,cj->ci", rotations, self.camera_shifts)
        rotations[:] = rotations @ self.camera_turns
        places += self.light_shifts.reshape(-1)
        directions[:] = np.einsum("lij,lj->li", self.light_turns, directions.reshape(-1, 3)).reshape(-1)
        return seen

    def of(self, camera: Camera) -> Camera:
        """A camera that is not the model's, where this look has it."""
        shift, turn = self.own_camera
        if not shift.any() and np.array_equal(turn, np.eye(3)):
            return camera
        quaternion = np.empty(4)
        mujoco.mju_mat2Quat(quaternion, (camera.rotation @ turn).reshape(-1))
        position = np.asarray(camera.position) + camera.rotation @ shift
        return replace(camera, position=position.tolist(), target=None, quaternion=quaternion.tolist())


def draw_look(model: mujoco.MjModel, what: Randomization, seed: int) -> Look | None:
    """The look that always belongs to this seed; None if all looks are the same."""
    if not what.changes_looks:
        return None
    random = np.random.default_rng([seed, _LIGHTS])
    worn: dict[str, np.ndarray] = {}
    brightness = random.uniform(1 - what.light_intensity, 1 + what.light_intensity, (model.nlight, 1))
    light_shifts = what.light_position_m * random.uniform(-1, 1, (model.nlight, 3))
    light_turns = _turns(random, model.nlight, what.light_direction_deg)
    if what.light_intensity:
        worn |= {name: getattr(model, name) * brightness for name in _LIGHT_FIELDS}

    random = np.random.default_rng([seed, _MATERIALS])
    tints = random.uniform(1 - what.colours, 1, (model.nmat, 3))
    if what.colours:
        worn["mat_rgba"] = model.mat_rgba.copy()
        worn["mat_rgba"][:, :3] *= np.where(_of_robot(model)[:, None], 1.0, tints)
    if what.textures:
        worn["geom_matid"] = model.geom_matid.copy()
        for geoms in surfaces(model):
            worn["geom_matid"][geoms] = random.choice(patterns(model))

    random = np.random.default_rng([seed, _CAMERAS])
    shifts = what.camera_position_m * random.uniform(-1, 1, (model.ncam + 1, 3))
    turns = _turns(random, model.ncam + 1, what.camera_rotation_deg)
    return Look(
        worn=worn,
        light_shifts=light_shifts,
        light_turns=light_turns,
        camera_shifts=shifts[1:],
        camera_turns=turns[1:],
        own_camera=(shifts[0], turns[0]),
    )


def surfaces(model: mujoco.MjModel) -> list[np.ndarray]:
    """Ids of the geoms of each surface of the room, floor, walls and table: flat, of one pattern."""
    of_room = np.array([not body or "table" in model.body(body).name for body in range(model.nbody)])[model.geom_bodyid]
    flat = of_room & np.isin(model.geom_type, (_PLANE, _BOX)) & (model.geom_group == _VISIBLE_GROUP)
    return [
        np.flatnonzero(flat & (model.geom_matid == pattern)) for pattern in patterns(model) if pattern in model.geom_matid[flat]
    ]


def patterns(model: mujoco.MjModel) -> np.ndarray:
    """Ids of materials that look well on any surface: textured, no mirrors, and not painted for a mesh or the robot."""
    painted = _worn_by(model, model.geom_type == _MESH) | _of_robot(model)
    return np.flatnonzero((model.mat_texid >= 0).any(axis=1) & (model.mat_reflectance == 0) & ~painted)


def _of_robot(model: mujoco.MjModel) -> np.ndarray:
    """(M,) bool: materials of the robot's."""
    robots = np.array([model.body(body).name.startswith(_ROBOT) for body in range(model.nbody)])
    return _worn_by(model, robots[model.geom_bodyid])


def _worn_by(model: mujoco.MjModel, geoms: np.ndarray) -> np.ndarray:
    """(M,) bool: materials of any of these geoms, (G,) bool."""
    marked = np.zeros(model.nmat, bool)
    marked[model.geom_matid[geoms & (model.geom_matid >= 0)]] = True
    return marked


def _turns(random: np.random.Generator, count: int, most_deg: float) -> np.ndarray:
    """(count, 3, 3): rotations by up to so much, about axes of any direction."""
    axes = random.normal(size=(count, 3))
    angles = np.radians(most_deg) * random.uniform(-1, 1, count)
    quaternion, matrix, turns = np.empty(4), np.empty(9), np.empty((count, 3, 3))
    for index, (axis, angle) in enumerate(zip(axes, angles, strict=True)):
        mujoco.mju_axisAngle2Quat(quaternion, axis / np.linalg.norm(axis), angle)
        mujoco.mju_quat2Mat(matrix, quaternion)
        turns[index] = matrix.reshape(3, 3)
    return turns
