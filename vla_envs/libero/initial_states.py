"""Random initial states of a task: its movable objects are placed anew in the regions that the task allows, without collisions.

Places and angles are drawn as LIBERO's own samplers draw them. All else (robot, drawers, knobs, and the objects' heights) comes
from one of the benchmark's stored states, drawn at random. LIBERO keeps objects apart by nominal radii that are too small; here
MuJoCo's contacts decide, so that nothing is thrown about when the episode begins.
"""

import mujoco
import numpy as np

from vla_envs.libero.scene import Placement, Scene

START_NUMBERS = 2**31
"""An episode draws a number below this from its slot's stream; modulo the number of starts, it says which one it gets."""
_MAX_ATTEMPTS = 1000
_TOLERANCE = 1e-3
"""Metres. Bodies that overlap in all stored states (a can and the floor) may overlap by this much more."""


class InitialStates:
    """Initial states of one scene; for one thread at a time.

    Args:
        scene: The task.
    """

    def __init__(self, scene: Scene) -> None:
        self._scene = scene
        model = self._model = scene.model
        self._data = mujoco.MjData(model)
        self._root_of_geom = model.body_rootid[model.geom_bodyid]
        movable = model.body_rootid[model.jnt_bodyid[model.jnt_type == mujoco.mjtJoint.mjJNT_FREE]]
        self._watched = np.zeros((model.nbody, model.nbody), bool)
        self._watched[movable, :] = self._watched[:, movable] = True
        usual = np.min([self._depths(state) for state in scene.init_states], axis=0)
        self._allowed_depths = np.where(usual > 0, usual + _TOLERANCE, 0.0)

    def numbered(self, number: int) -> np.ndarray:
        """A state that is always the same for this number, on every backend; otherwise as `draw`."""
        return self.draw(np.random.default_rng(number))

    def draw(self, random: np.random.Generator) -> np.ndarray:
        """One state.

        Args:
            random: Where numbers come from.

        Returns:
            (1 + nq + nv,) float64: [time, qpos, qvel], at time 0 and at rest.

        Raises:
            RuntimeError: The task's regions leave no room for its objects.
        """
        for _ in range(_MAX_ATTEMPTS):
            state = self._place_objects(random)
            if (self._depths(state) <= self._allowed_depths).all():
                return state
        raise RuntimeError(f"{self._scene.name}: no placement without collisions was found in {_MAX_ATTEMPTS} attempts")

    def _place_objects(self, random: np.random.Generator) -> np.ndarray:
        state = self._scene.init_states[random.integers(len(self._scene.init_states))].copy()
        state[0] = 0.0
        state[1 + self._model.nq :] = 0.0
        self._data.qpos[:] = state[1 : 1 + self._model.nq]
        mujoco.mj_kinematics(self._model, self._data)
        places: dict[str, np.ndarray] = {}
        for placement in self._scene.placements:
            origin = places[placement.attached_to] if placement.attached_to else np.zeros(2)
            if placement.site >= 0:
                origin = self._data.site_xpos[placement.site, :2]
            places[placement.object_name] = place = origin + _draw_place(placement, random)
            address = 1 + placement.qpos_address
            state[address : address + 2] = place
            state[address + 3 : address + 7] = _draw_orientation(placement, random)
        return state

    def _depths(self, state: np.ndarray) -> np.ndarray:
        """(nbody, nbody) metres: how deep a movable body and another one overlap; 0 if they do not touch.

        A whole object, fixture or robot counts as one body: the root of its tree.
        """
        self._data.qpos[:] = state[1 : 1 + self._model.nq]
        mujoco.mj_fwdPosition(self._model, self._data)
        depths = np.zeros((self._model.nbody, self._model.nbody))
        contact = self._data.contact
        first, second = self._root_of_geom[contact.geom.reshape(-1, 2)].T
        np.maximum.at(depths, (np.minimum(first, second), np.maximum(first, second)), -contact.dist)
        return np.where(self._watched, depths, 0.0)


def _draw_place(placement: Placement, random: np.random.Generator) -> np.ndarray:
    """(2,) metres."""
    x_min, y_min, x_max, y_max = placement.ranges[random.integers(len(placement.ranges))]
    return random.uniform((x_min, y_min), (x_max, y_max))


def _draw_orientation(placement: Placement, random: np.random.Generator) -> np.ndarray:
    """(4,) w x y z."""
    yaw, turn, orientation = random.uniform(*placement.yaw_range), np.zeros(4), np.zeros(4)
    mujoco.mju_axisAngle2Quat(turn, np.array([0.0, 0.0, 1.0]), yaw)
    mujoco.mju_mulQuat(orientation, turn, placement.orientation)
    return orientation
