"""A LIBERO scene and its players, as the engine takes them: compiled control steps, goals and the stove's glow."""

from collections.abc import Mapping
from copy import copy
from dataclasses import replace
from functools import cached_property
from typing import Any, NamedTuple

import mujoco
import numpy as np

from vla_envs.libero.controller import (
    ControlState,
    VisualSwitches,
    copy_control_state,
    gripper_dofs,
    initial_control_state,
    new_control_state,
    observe,
    play_actions,
    workspace,
)
from vla_envs.libero.goals import GoalInputs
from vla_envs.libero.privileged import SceneGeometry
from vla_envs.libero.scene import Scene
from vla_envs.vector.arena import limit_arena
from vla_envs.vector.control import OSC_DELTA
from vla_envs.vector.engine import PROPRIOCEPTION_DIM, EngineScene, Player
from vla_envs.vector.mujoco_c import c_functions, contact_layout
from vla_envs.vector.robot_state import ROBOT_STATE_DIM
from vla_envs.vector.slot import FAULTS, GoalRecord, View, contact_pairs, empty_record, has_fault, slot_arrays

_FAULT_CODES = np.array([int(fault) for fault in FAULTS], np.int64)
_STATE = mujoco.mjtState.mjSTATE_INTEGRATION
SLEEP_TOLERANCE = 1e-4
"""Speed in m/s below which an object lies still. A tenth of MuJoCo's default, with which what rolls slowly stops; no slower."""


class LiberoEngineScene(EngineScene):
    """One compiled LIBERO task.

    Args:
        scene: The task; its model is changed as below.
        sleep: Objects that lie still are not simulated until something touches them.
    """

    _origin: "LiberoEngineScene | None" = None
    """Whose copy it is."""

    def __init__(self, scene: Scene, *, sleep: bool = False) -> None:
        limit_arena(scene.model)
        self.sleep = sleep
        if sleep:
            let_objects_sleep(scene)
        named = set(scene.cameras.values())
        others = {scene.model.camera(camera).name: camera for camera in range(scene.model.ncam) if camera not in named}
        super().__init__(scene.model, scene.cameras | others)
        self.scene = scene
        self.initial_control: ControlState = initial_control_state(scene.model, scene.osc)
        self.gripper_dofs = gripper_dofs(scene.model, scene.osc)
        self.pairs = contact_pairs(scene.model.ngeom, scene.goal.contact_pairs)
        self.state_size = mujoco.mj_stateSize(scene.model, _STATE)
        scene.model.opt.disableflags |= mujoco.mjtDisableBit.mjDSBL_SENSOR  # nobody reads the wrist's force and torque
        self._shown = np.array([scene.model.site_rgba[switch.site_id, 3] > 0 for switch in scene.visual_switches], bool)

    @cached_property
    def geometry(self) -> SceneGeometry:
        """Names and shapes, for privileged views; made when first asked for."""
        return SceneGeometry(self.scene)

    @property
    def drawn_as(self) -> EngineScene:
        return self._origin or self

    def with_own_model(self) -> "LiberoEngineScene":
        """The same scene, but fixtures may be moved in it."""
        own = LiberoEngineScene(replace(self.scene, model=copy(self.model)), sleep=self.sleep)
        own._origin = self
        return own

    def move(self, fixtures: Mapping[int, tuple[np.ndarray, np.ndarray]]) -> None:
        """Put fixtures elsewhere, while nobody plays; only in a scene `with_own_model`.

        Args:
            fixtures: Body -> position (3,) in m and quaternion (4,) w x y z.
        """
        assert self._origin is not None, "others share this model"
        for body, (position, quaternion) in fixtures.items():
            self.model.body_pos[body], self.model.body_quat[body] = position, quaternion
        self.__dict__.pop("geometry", None)

    def new_player(self) -> "LiberoPlayer":
        return LiberoPlayer(self)

    def judge(self, record: GoalRecord, num_steps: int) -> np.ndarray:
        if num_steps == 0:
            return np.zeros(0, bool)
        return self.scene.goal.holds(GoalInputs(**{name: rows[:num_steps] for name, rows in record._asdict().items()}))

    def show_switches(self, on: np.ndarray) -> None:
        for index in np.flatnonzero(on != self._shown):
            switch = self.scene.visual_switches[index]
            self.model.site_rgba[switch.site_id] = switch.rgba_on if on[index] else switch.rgba_off
            self._shown[index] = on[index]


def let_objects_sleep(scene: Scene) -> None:
    """Switch MuJoCo's sleeping on, but for objects whose contacts the goal asks about: those of sleepers are not looked for."""
    model = scene.model
    model.opt.enableflags |= mujoco.mjtEnableBit.mjENBL_SLEEP
    model.opt.sleep_tolerance = SLEEP_TOLERANCE
    for pair in scene.goal.contact_pairs:
        trees = model.body_treeid[model.geom_bodyid[np.concatenate(pair)]]
        model.tree_sleep_policy[trees[trees >= 0]] = mujoco.mjtSleepPolicy.mjSLEEP_NEVER


class _Saved(NamedTuple):
    physics: np.ndarray
    warnings: np.ndarray
    control: ControlState
    switches_on: np.ndarray
    view: View


class LiberoPlayer(Player):
    """One mjData of a scene with its controller."""

    def __init__(self, scene: LiberoEngineScene) -> None:
        model = scene.model
        self._scene, self._model, self._data = scene, model, mujoco.MjData(model)
        self._arrays = slot_arrays(model, self._data)
        self._control = new_control_state()
        switches = scene.scene.visual_switches
        self._switches = VisualSwitches(
            qpos=np.array([switch.qpos_address for switch in switches], np.int64),
            threshold=np.array([switch.threshold for switch in switches], np.float64),
            now_on=np.zeros(len(switches), np.bool_),
        )
        self._workspace = workspace(model)
        self.view = View(
            poses=np.zeros(sum(pose.size for pose in self._arrays.poses)),
            switches_on=np.zeros(len(switches), np.bool_),
            proprioception=np.zeros(PROPRIOCEPTION_DIM),
            robot_state=np.zeros(ROBOT_STATE_DIM),
        )
        self._num_pairs = len(scene.scene.goal.contact_pairs)
        self.record = empty_record(model, 1, self._num_pairs)

    def begin(self, state: np.ndarray) -> None:
        mujoco.mj_resetData(self._model, self._data)
        copy_control_state(self._scene.initial_control, self._control)
        self.set_state(state)

    def play(self, actions: np.ndarray, num_steps: int, law: int = OSC_DELTA) -> int:
        if len(self.record.qpos) < num_steps:
            self.record = empty_record(self._model, num_steps, self._num_pairs)
        return play_actions(
            c_functions(),
            contact_layout(),
            self._arrays,
            _FAULT_CODES,
            self._scene.scene.osc,
            self._scene.gripper_dofs,
            self._control,
            self._switches,
            self._workspace,
            self._scene.pairs,
            self.record,
            self.view,
            law,
            actions,
            num_steps,
        )

    def save(self) -> Any:
        physics = np.empty(self._scene.state_size)
        mujoco.mj_getState(self._model, self._data, physics, _STATE)
        control = new_control_state()
        copy_control_state(self._control, control)
        return _Saved(
            physics=physics,
            warnings=self._arrays.warnings.copy(),
            control=control,
            switches_on=self._switches.now_on.copy(),
            view=View(*(array.copy() for array in self.view)),
        )

    def restore(self, saved: Any) -> None:
        mujoco.mj_resetData(self._model, self._data)
        mujoco.mj_setState(self._model, self._data, saved.physics, _STATE)
        self._arrays.warnings[:] = saved.warnings
        copy_control_state(saved.control, self._control)
        self._switches.now_on[:] = saved.switches_on
        for mine, theirs in zip(self.view, saved.view, strict=True):
            mine[:] = theirs

    def mark(self) -> None:
        super().mark()
        if self._scene.sleep:  # no state that MuJoCo gives away says who sleeps
            mujoco.mj_copyData(self._twin, self._model, self._data)

    def rewind(self) -> None:
        super().rewind()
        if self._scene.sleep:
            mujoco.mj_copyData(self._data, self._model, self._twin)

    @cached_property
    def _twin(self) -> mujoco.MjData:
        return mujoco.MjData(self._model)

    def get_state(self) -> np.ndarray:
        return np.concatenate([[self._data.time], self._data.qpos, self._data.qvel])

    def set_state(self, state: np.ndarray) -> None:
        if self._scene.sleep:
            self._wake_all()
        num_positions = self._model.nq
        self._data.time = state[0]
        self._data.qpos[:] = state[1 : 1 + num_positions]
        self._data.qvel[:] = state[1 + num_positions :]
        self._data.qacc_warmstart[:] = 0
        mujoco.mj_forward(self._model, self._data)
        self._switches.now_on[:] = self._data.qpos[self._switches.qpos] >= self._switches.threshold
        observe(self._arrays, self._scene.scene.osc, self._scene.gripper_dofs, self._switches, self.view)

    def _wake_all(self) -> None:
        """So that equal states have equal futures, whoever slept before."""
        physics, warnings = np.empty(self._scene.state_size), self._arrays.warnings.copy()
        mujoco.mj_getState(self._model, self._data, physics, _STATE)
        mujoco.mj_resetData(self._model, self._data)
        mujoco.mj_setState(self._model, self._data, physics, _STATE)
        self._arrays.warnings[:] = warnings

    def fault(self) -> str:
        if not has_fault(self._arrays, _FAULT_CODES):
            return ""
        raised = [fault.name.removeprefix("mjWARN_") for fault in FAULTS if self._arrays.warnings[int(fault)] > 0]
        return f"the simulation diverged (MuJoCo: {', '.join(raised)})"
