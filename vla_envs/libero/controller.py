"""LIBERO's control step, compiled: one of robosuite's controllers and its Panda gripper around MuJoCo's own substeps.

One control step is `substeps` physics steps. At its start the action becomes a goal of the arm; in every substep the law
(`control_laws.py`) turns the distance to that goal into joint torques between `mj_step1` and `mj_step2`, and the gripper's
command moves one notch towards the sign of the last number. Whether the task is done is judged at the end of the control step.

Two of robosuite's habits are kept, because what a policy sees depends on them:

* In the first substep of an episode the controller acts on what it sensed when it was built, in the reset posture.
* Images and proprioception are sampled one substep before the end of the control step. `qpos` is then already integrated, while
  body poses are still those of the substep's start. That is when robosuite's observables are due in an episode begun with
  `reset` and `set_init_state`.
"""

import math
from typing import NamedTuple

import mujoco
import numpy as np

from vla_envs.libero.control_laws import (
    ARM_JOINTS,
    Sensed,
    add_joint_torques,
    add_pose_torques,
    set_absolute_pose,
    set_joint_goal,
    set_relative_pose,
)
from vla_envs.libero.scene import OscConstants
from vla_envs.vector.compiled import compiled
from vla_envs.vector.control import JOINT_POSITION, OSC_ABSOLUTE
from vla_envs.vector.mujoco_c import CFunctions, ContactLayout, c_functions, call_c
from vla_envs.vector.slot import (
    ContactPairs,
    GoalRecord,
    SlotArrays,
    View,
    copy_poses,
    has_fault,
    record_goal_inputs,
    slot_arrays,
)


class ControlState(NamedTuple):
    """What one slot's controller remembers."""

    sensed: Sensed
    stale: np.ndarray
    """(1,) bool: True at the start of an episode, where the first substep uses `sensed` without reading it anew."""
    goal_position: np.ndarray
    """(3,)."""
    goal_orientation: np.ndarray
    """(3, 3): kept until an action asks for a rotation."""
    goal_joints: np.ndarray
    """(7,): of `joint_position` alone."""
    gripper: np.ndarray
    """(2,): the fingers' commands in [-1, 1]."""


class VisualSwitches(NamedTuple):
    """V parts that look different while a joint is turned (the stove's burner)."""

    qpos: np.ndarray
    """(V,) int32: addresses of the joints in qpos."""
    threshold: np.ndarray
    """(V,): "on" from this joint position upwards."""
    now_on: np.ndarray
    """(V,) bool: which are on in this slot, as judged at the end of its last control step."""


class Workspace(NamedTuple):
    """Scratch memory of one slot's controller."""

    jacobian: np.ndarray
    """(6, nv)."""
    unit: np.ndarray
    """(nv,) zeros."""
    column: np.ndarray
    """(nv,)."""


def workspace(model: mujoco.MjModel) -> Workspace:
    """Scratch memory for one slot."""
    return Workspace(jacobian=np.zeros((6, model.nv)), unit=np.zeros(model.nv), column=np.zeros(model.nv))


def gripper_dofs(model: mujoco.MjModel, osc: OscConstants) -> np.ndarray:
    """(2,) int32: addresses of the finger joints in qvel."""
    return np.array([model.jnt_dofadr[model.jnt_qposadr == address][0] for address in osc.gripper_qpos], np.int32)


def initial_control_state(model: mujoco.MjModel, osc: OscConstants) -> ControlState:
    """What robosuite's controller knows after `reset`: the arm in its initial posture and at rest, all else at qpos0."""
    data = mujoco.MjData(model)
    data.qpos[osc.arm_qpos] = osc.initial_joints
    mujoco.mj_forward(model, data)
    control = new_control_state()
    _sense(c_functions(), slot_arrays(model, data), osc, workspace(model), control.sensed)
    control.stale[:] = True
    control.goal_position[:] = control.sensed.position
    control.goal_orientation[:] = control.sensed.orientation
    return control


def new_control_state() -> ControlState:
    """Memory for a controller, all zeros."""
    return ControlState(
        sensed=Sensed(
            position=np.zeros(3),
            orientation=np.zeros((3, 3)),
            velocity=np.zeros(6),
            joints=np.zeros(ARM_JOINTS),
            joint_speeds=np.zeros(ARM_JOINTS),
            jacobian=np.zeros((6, ARM_JOINTS)),
            mass=np.zeros((ARM_JOINTS, ARM_JOINTS)),
        ),
        stale=np.zeros(1, np.bool_),
        goal_position=np.zeros(3),
        goal_orientation=np.zeros((3, 3)),
        goal_joints=np.zeros(ARM_JOINTS),
        gripper=np.zeros(2),
    )


def copy_control_state(source: ControlState, target: ControlState) -> None:
    """Copy all that `source` remembers into `target`'s own memory."""
    for mine, theirs in zip(target.sensed, source.sensed, strict=True):
        mine[:] = theirs
    for name in ("stale", "goal_position", "goal_orientation", "goal_joints", "gripper"):
        getattr(target, name)[:] = getattr(source, name)


@compiled
def play_actions(
    functions: CFunctions,
    layout: ContactLayout,
    arrays: SlotArrays,
    faults: np.ndarray,
    osc: OscConstants,
    gripper_dofs: np.ndarray,
    control: ControlState,
    switches: VisualSwitches,
    scratch: Workspace,
    pairs: ContactPairs,
    record: GoalRecord,
    view: View,
    law: int,
    actions: np.ndarray,
    num_steps: int,
) -> int:
    """Play the first `num_steps` of `actions` (K, A) float64 by a control law, clipped as robosuite clips them.

    Fills rows 0..num_steps-1 of `record`, and `view` with what is seen of the last control step.

    Returns:
        Control steps completed: fewer than `num_steps` if the simulation diverged in the one after them.
    """
    for step in range(num_steps):
        for substep in range(osc.substeps):
            call_c(functions.mj_step1, (arrays.model_address, arrays.data_address))
            if has_fault(arrays, faults):
                return step  # MuJoCo has reset the simulation: there is no pose that the controller could work with
            if not control.stale[0]:
                _sense(functions, arrays, osc, scratch, control.sensed)
            control.stale[0] = False
            if substep == 0:
                _set_goal(law, osc, control, actions[step])
            _set_torques(law, osc, control, arrays.qfrc_bias, arrays.ctrl)
            _move_fingers(osc, control.gripper, actions[step, -1], arrays.ctrl)
            call_c(functions.mj_step2, (arrays.model_address, arrays.data_address))
            if substep == osc.substeps - 2 and not has_fault(arrays, faults):
                observe(arrays, osc, gripper_dofs, switches, view)
        if has_fault(arrays, faults):
            return step
        record_goal_inputs(arrays, layout, pairs, record, step)
        for switch in range(switches.now_on.size):
            switches.now_on[switch] = arrays.qpos[switches.qpos[switch]] >= switches.threshold[switch]
    return num_steps


@compiled
def observe(arrays: SlotArrays, osc: OscConstants, gripper_dofs: np.ndarray, switches: VisualSwitches, view: View) -> None:
    """Fill `view` with the current poses, switches, proprioception and robot state."""
    copy_poses(arrays.poses, view.poses)
    view.switches_on[:] = switches.now_on
    view.proprioception[:3] = arrays.site_xpos[osc.grip_site]
    w, x, y, z = arrays.xquat[osc.eef_body]
    w = min(1.0, max(-1.0, w))
    length = math.sqrt(1.0 - w * w)
    scale = 0.0 if length == 0.0 else 2.0 * math.acos(w) / length
    view.proprioception[3] = x * scale
    view.proprioception[4] = y * scale
    view.proprioception[5] = z * scale
    for finger in range(2):
        view.proprioception[6 + finger] = arrays.qpos[osc.gripper_qpos[finger]]
    _read_robot(arrays, osc, gripper_dofs, view.robot_state)


@compiled
def _read_robot(arrays: SlotArrays, osc: OscConstants, gripper_dofs: np.ndarray, row: np.ndarray) -> None:
    """Fill a row as `robot_state` has it."""
    for joint in range(ARM_JOINTS):
        angle = arrays.qpos[osc.arm_qpos[joint]]
        row[joint] = angle
        row[7 + joint] = math.cos(angle)
        row[14 + joint] = math.sin(angle)
        row[21 + joint] = arrays.qvel[osc.arm_dofs[joint]]
    row[28:31] = arrays.site_xpos[osc.grip_site]
    row[31:34] = arrays.xquat[osc.eef_body, 1:]
    row[34] = arrays.xquat[osc.eef_body, 0]
    row[35:44] = arrays.xmat[osc.eef_body]
    for finger in range(2):
        row[44 + finger] = arrays.qpos[osc.gripper_qpos[finger]]
        row[46 + finger] = arrays.qvel[gripper_dofs[finger]]


@compiled
def _sense(functions: CFunctions, arrays: SlotArrays, osc: OscConstants, scratch: Workspace, sensed: Sensed) -> None:
    """Read the grip site's pose and velocity, the arm's joints, Jacobian and mass matrix."""
    sensed.position[:] = arrays.site_xpos[osc.grip_site]
    for row in range(3):
        for column in range(3):
            sensed.orientation[row, column] = arrays.site_xmat[osc.grip_site, 3 * row + column]
    call_c(
        functions.mj_jac_site,
        (
            arrays.model_address,
            arrays.data_address,
            scratch.jacobian[:3].ctypes.data,
            scratch.jacobian[3:].ctypes.data,
            osc.grip_site,
        ),
    )
    for axis in range(6):
        sensed.velocity[axis] = 0.0
        for dof in range(arrays.qvel.size):
            sensed.velocity[axis] += scratch.jacobian[axis, dof] * arrays.qvel[dof]
    for joint in range(ARM_JOINTS):
        dof = osc.arm_dofs[joint]
        sensed.joints[joint] = arrays.qpos[osc.arm_qpos[joint]]
        sensed.joint_speeds[joint] = arrays.qvel[dof]
        for axis in range(6):
            sensed.jacobian[axis, joint] = scratch.jacobian[axis, dof]
        scratch.unit[dof] = 1.0
        call_c(
            functions.mj_mul_m,
            (arrays.model_address, arrays.data_address, scratch.column.ctypes.data, scratch.unit.ctypes.data),
        )
        scratch.unit[dof] = 0.0
        for other in range(ARM_JOINTS):
            sensed.mass[other, joint] = scratch.column[osc.arm_dofs[other]]


@compiled
def _set_goal(law: int, osc: OscConstants, control: ControlState, action: np.ndarray) -> None:
    """Where the arm is to go in a control step."""
    if law == JOINT_POSITION:
        set_joint_goal(control.sensed, action, control.goal_joints)
    elif law == OSC_ABSOLUTE:
        set_absolute_pose(action, control.goal_position, control.goal_orientation)
    else:
        set_relative_pose(osc, control.sensed, action, control.goal_position, control.goal_orientation)


@compiled
def _set_torques(law: int, osc: OscConstants, control: ControlState, bias: np.ndarray, ctrl: np.ndarray) -> None:
    """Write the arm's torques of one substep into `ctrl`; `bias` (nv,) is what holds it against gravity."""
    torques = np.empty(ARM_JOINTS)
    for joint in range(ARM_JOINTS):
        torques[joint] = bias[osc.arm_dofs[joint]]
    if law == JOINT_POSITION:
        add_joint_torques(control.sensed, control.goal_joints, torques)
    else:
        add_pose_torques(osc, control.sensed, control.goal_position, control.goal_orientation, torques)
    for joint in range(ARM_JOINTS):
        ctrl[osc.arm_actuators[joint]] = min(osc.torque_max[joint], max(osc.torque_min[joint], torques[joint]))


@compiled
def _move_fingers(osc: OscConstants, gripper: np.ndarray, action: float, ctrl: np.ndarray) -> None:
    """Move the fingers' commands (2,) one notch towards the action's sign, and write their targets into `ctrl`."""
    for finger in range(2):
        notch = osc.gripper_speed * np.sign(action) * (2.0 * finger - 1.0)
        gripper[finger] = min(1.0, max(-1.0, gripper[finger] + notch))
        ctrl[osc.gripper_actuators[finger]] = osc.gripper_bias[finger] + osc.gripper_weight[finger] * gripper[finger]
