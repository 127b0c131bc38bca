"""What a policy must not see, and an expert or a reward function may: poses, joints, sizes and the goal of one slot.

Invariant: every number is that of the state the slot is in now, directly after `reset` and `set_state` too. A slot's own
simulation does not have it so: its poses are those of the last substep's start, or zero in an episode begun from a copy. So a
view takes the state alone and computes poses anew, in memory of its own; the slot is not touched.

Metres, radians, world frame; quaternions are w x y z.
"""

import threading
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import mujoco
import numpy as np

from vla_envs.libero.controller import gripper_dofs
from vla_envs.libero.goals import Goal
from vla_envs.libero.scene import OscConstants, Scene

_ROBOT = ("robot0_", "gripper0_", "mount0_")
"""How the names of the robot's bodies begin."""
_ROOT = "_main"
"""How the names of objects' root bodies end."""


@dataclass(frozen=True, kw_only=True)
class Pose:
    """Where something is."""

    position: np.ndarray
    """(3,) float64."""
    rotation: np.ndarray
    """(3, 3) float64: columns are its axes."""

    @property
    def quaternion(self) -> np.ndarray:
        """(4,) float64, w x y z."""
        quaternion = np.empty(4)
        mujoco.mju_mat2Quat(quaternion, self.rotation.reshape(-1))
        return quaternion

    def into(self, points: np.ndarray) -> np.ndarray:
        """Points of the world, (..., 3), in this frame."""
        return (points - self.position) @ self.rotation

    def out(self, points: np.ndarray) -> np.ndarray:
        """Points of this frame, (..., 3), in the world."""
        return points @ self.rotation.T + self.position


@dataclass(frozen=True, kw_only=True)
class Box:
    """A box along the axes of the frame that it is given in."""

    low: np.ndarray
    """(3,) float64."""
    high: np.ndarray
    """(3,) float64."""

    @property
    def centre(self) -> np.ndarray:
        """(3,)."""
        return (self.low + self.high) / 2

    @property
    def size(self) -> np.ndarray:
        """(3,): full extents."""
        return self.high - self.low


class SceneGeometry:
    """Names and shapes of one scene, which never change; and room to compute poses in.

    Args:
        scene: What it is about.
    """

    def __init__(self, scene: Scene) -> None:
        model = self.model = scene.model
        self.scene = scene
        self.body_ids = {model.body(body).name: body for body in range(model.nbody)}
        self.site_ids = {model.site(site).name: site for site in range(model.nsite)}
        self.joint_ids = {model.joint(joint).name: joint for joint in range(model.njnt)}
        roots = {
            name.removesuffix(_ROOT): body
            for name, body in self.body_ids.items()
            if name.endswith(_ROOT) and model.body_parentid[body] == 0 and not name.startswith(_ROBOT)
        }
        self.objects = {name: body for name, body in roots.items() if _floats(model, body)}
        """Movable object -> its body."""
        self.fixtures = {name: body for name, body in roots.items() if not _floats(model, body)}
        """Cabinet, stove, microwave and the like -> its root body."""
        self.derived: dict[Hashable, Any] = {}
        """What others have worked out about this scene and keep."""
        self._data = mujoco.MjData(model)
        self._lock = threading.Lock()
        self._shapes: dict[int, tuple[np.ndarray, ...]] = {}

    def forward(self, state: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Positions (B, 3) and rotations (B, 3, 3) of bodies, (S, 3) and (S, 3, 3) of sites, in [time, qpos, qvel]."""
        with self._lock:
            self._data.qpos[:] = state[1 : 1 + self.model.nq]
            mujoco.mj_kinematics(self.model, self._data)
            return (
                self._data.xpos.copy(),
                self._data.xmat.reshape(-1, 3, 3).copy(),
                self._data.site_xpos.copy(),
                self._data.site_xmat.reshape(-1, 3, 3).copy(),
            )

    def shapes(self, body: int) -> tuple[np.ndarray, ...]:
        """Corners of what collides of one body, in its frame: (V, 3) per geom; of a sphere, capsule or cylinder, its box."""
        if body not in self._shapes:
            first, count = self.model.body_geomadr[body], self.model.body_geomnum[body]
            geoms = [
                geom
                for geom in range(first, first + count)
                if self.model.geom_contype[geom] or self.model.geom_conaffinity[geom]
            ]
            self._shapes[body] = tuple(_corners(self.model, geom) for geom in geoms)
        return self._shapes[body]

    def parts(self, body: int) -> list[int]:
        """A body and all that hangs on it."""
        found = [body]
        for other in range(body + 1, self.model.nbody):
            if self.model.body_parentid[other] in found:
                found.append(other)
        return found


class PrivilegedView:
    """One slot as it is now: a snapshot, which later steps do not change.

    Args:
        geometry: Of the slot's scene.
        state: (1 + nq + nv,) [time, qpos, qvel] of the slot.
        init_state_id: The initial state that the episode began from; -1 for a state of its own.
    """

    def __init__(self, geometry: SceneGeometry, state: np.ndarray, *, init_state_id: int) -> None:
        scene = geometry.scene
        self.geometry = geometry
        self.state = state
        self.suite, self.task_id, self.task_name = scene.suite, scene.task_id, scene.name
        self.init_state_id, self.instruction = init_state_id, scene.instruction
        self.body_positions, self.body_rotations, self.site_positions, self.site_rotations = geometry.forward(state)

    @property
    def goal(self) -> Goal:
        """The task's predicates. The ids in them index `body_positions`, `site_positions` and `qpos`."""
        return self.geometry.scene.goal

    @property
    def qpos(self) -> np.ndarray:
        """(nq,) float64."""
        return self.state[1 : 1 + self.geometry.model.nq]

    @property
    def objects(self) -> Mapping[str, int]:
        """Name of each object that can be moved -> id of its body."""
        return self.geometry.objects

    @property
    def fixtures(self) -> Mapping[str, int]:
        """Name of each cabinet, stove, microwave, rack ... -> id of its root body."""
        return self.geometry.fixtures

    def name(self, body: int) -> str:
        """Name of an object or fixture by its root body's id; of any other body its MuJoCo name."""
        return self.geometry.model.body(body).name.removesuffix(_ROOT)

    def body(self, body: str | int) -> Pose:
        """Pose of a body by its MuJoCo name, by an object's or fixture's name, or by id.

        Raises:
            ValueError: There is none of that name.
        """
        index = self._body_id(body)
        return Pose(position=self.body_positions[index], rotation=self.body_rotations[index])

    def site(self, site: str | int) -> Pose:
        """Pose of a site by its MuJoCo name (regions of LIBERO's goals are sites) or id.

        Raises:
            ValueError: There is none of that name.
        """
        index = _lookup("site", self.geometry.site_ids, site)
        return Pose(position=self.site_positions[index], rotation=self.site_rotations[index])

    def joint(self, joint: str) -> float:
        """Position of a hinge (rad) or slide (m) joint by its MuJoCo name.

        Raises:
            ValueError: There is none of that name, or it is an object's free joint.
        """
        index = _lookup("joint", self.geometry.joint_ids, joint)
        if self.geometry.model.jnt_type[index] == mujoco.mjtJoint.mjJNT_FREE:
            raise ValueError(f"joint {joint!r} is free, it has no single position: ask for its body's pose")
        return float(self.qpos[self.geometry.model.jnt_qposadr[index]])

    @cached_property
    def end_effector(self) -> Pose:
        """Pose of the point between the fingertips, which actions move. Its z axis points out of the hand, and the fingers
        open along its x axis."""
        return self.site(int(self._osc.grip_site))

    @property
    def gripper_opening(self) -> float:
        """Distance between the fingers in metres: 0 to 0.08."""
        first, second = self.qpos[self._osc.gripper_qpos]
        return float(first - second)

    @property
    def gripper_speed(self) -> float:
        """How fast the fingers open, m/s; negative while they close."""
        model = self.geometry.model
        first, second = self.state[1 + model.nq :][gripper_dofs(model, self._osc)]
        return float(first - second)

    def lowest(self, body: str | int) -> float:
        """Height in metres of the lowest point of what collides of a body and its parts."""
        index = self._body_id(body)
        parts = self.geometry.parts(index)
        return min(float(self.body(part).out(corners)[:, 2].min()) for part in parts for corners in self.geometry.shapes(part))

    def box(self, body: str | int) -> Box:
        """The box around all that collides of a body and its parts, in the body's own frame, as they stand now.

        Raises:
            ValueError: There is no such body, or nothing of it collides.
        """
        index = self._body_id(body)
        pose = self.body(index)
        points = [
            pose.into(self.body(part).out(corners))
            for part in self.geometry.parts(index)
            for corners in self.geometry.shapes(part)
        ]
        if not points:
            raise ValueError(f"nothing of body {body!r} collides: it has no box")
        stacked = np.concatenate(points)
        return Box(low=stacked.min(axis=0), high=stacked.max(axis=0))

    @property
    def _osc(self) -> OscConstants:
        return self.geometry.scene.osc

    def _body_id(self, body: str | int) -> int:
        if isinstance(body, str):
            body = self.objects.get(body, self.fixtures.get(body, body))
        return _lookup("body", self.geometry.body_ids, body)


def _lookup(kind: str, known: Mapping[str, int], name: str | int) -> int:
    if not isinstance(name, str):
        return name
    if name not in known:
        raise ValueError(f"this scene has no {kind} {name!r}, only {', '.join(sorted(known))}")
    return known[name]


def _floats(model: mujoco.MjModel, body: int) -> bool:
    joint = model.body_jntadr[body]
    return joint >= 0 and model.jnt_type[joint] == mujoco.mjtJoint.mjJNT_FREE


def _corners(model: mujoco.MjModel, geom: int) -> np.ndarray:
    """(V, 3) corners of a geom in its body's frame."""
    if model.geom_type[geom] == mujoco.mjtGeom.mjGEOM_MESH:
        mesh = model.geom_dataid[geom]
        first, count = model.mesh_vertadr[mesh], model.mesh_vertnum[mesh]
        local = model.mesh_vert[first : first + count].astype(np.float64)
    else:
        centre, half = model.geom_aabb[geom].reshape(2, 3)
        signs = np.array(np.meshgrid((-1, 1), (-1, 1), (-1, 1))).reshape(3, -1).T
        local = centre + signs * half
    rotation = np.empty(9)
    mujoco.mju_quat2Mat(rotation, model.geom_quat[geom])
    return local @ rotation.reshape(3, 3).T + model.geom_pos[geom]
