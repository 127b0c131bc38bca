"""LIBERO's control step, compiled: robosuite's OSC_POSE controller and Panda gripper around MuJoCo's own substeps.

One control step is `substeps` physics steps. At its start the action becomes a goal pose relative to the current one; in
every substep the controller turns the distance to that goal into joint torques between `mj_step1` and `mj_step2`, and the
gripper's command moves one notch towards the action's sign. Goals are judged at the end of the control step.

Two of robosuite's habits are kept, because what a policy sees depends on them:

* In the first substep of an episode the controller acts on what it sensed when it was built, in the reset posture.
* Images and proprioception are sampled one substep before the end of the control step. `qpos` is then already integrated, while
  body poses are still those of the substep's start. That is when robosuite's observables are due in an episode begun with
  `reset` and `set_init_state`.

Reference: O. Khatib, "A unified approach for motion and force control of robot manipulators", IEEE J-RA 3(1), 1987.
"""

import math
from typing import NamedTuple

import mujoco
import numpy as np

from vla_envs.libero.scene import OscConstants
from vla_envs.vector.compiled import compiled
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

_NULL_SPACE_STIFFNESS = 10.0
_ARM_JOINTS = 7


class Sensed(NamedTuple):
    """What the controller knows of the arm in one substep. Metres, radians, world frame."""

    position: np.ndarray
    """(3,) of the grip site."""
    orientation: np.ndarray
    """(3, 3) of the grip site."""
    velocity: np.ndarray
    """(6,): linear, then angular."""
    joints: np.ndarray
    """(7,)."""
    joint_speeds: np.ndarray
    """(7,)."""
    jacobian: np.ndarray
    """(6, 7): translation, then rotation, per arm joint."""
    mass: np.ndarray
    """(7, 7): the arm's block of the mass matrix."""


class ControlState(NamedTuple):
    """What one slot's controller remembers."""

    sensed: Sensed
    stale: np.ndarray
    """(1,) bool: True at the start of an episode, where the first substep uses `sensed` without reading it anew."""
    goal_position: np.ndarray
    """(3,)."""
    goal_orientation: np.ndarray
    """(3, 3): kept until an action asks for a rotation."""
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
            joints=np.zeros(_ARM_JOINTS),
            joint_speeds=np.zeros(_ARM_JOINTS),
            jacobian=np.zeros((6, _ARM_JOINTS)),
            mass=np.zeros((_ARM_JOINTS, _ARM_JOINTS)),
        ),
        stale=np.zeros(1, np.bool_),
        goal_position=np.zeros(3),
        goal_orientation=np.zeros((3, 3)),
        gripper=np.zeros(2),
    )


def copy_control_state(source: ControlState, target: ControlState) -> None:
    """Copy all that `source` remembers into `target`'s own memory."""
    for mine, theirs in zip(target.sensed, source.sensed, strict=True):
        mine[:] = theirs
    for name in ("stale", "goal_position", "goal_orientation", "gripper"):
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
    actions: np.ndarray,
    num_steps: int,
) -> int:
    """Play the first `num_steps` of `actions` (K, 7) float64, clipped as LIBERO clips them.

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
                _set_goal(osc, control, actions[step])
            _apply_control(arrays, osc, control, actions[step, 6])
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
    for joint in range(_ARM_JOINTS):
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
    for joint in range(_ARM_JOINTS):
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
        for other in range(_ARM_JOINTS):
            sensed.mass[other, joint] = scratch.column[osc.arm_dofs[other]]


@compiled
def _set_goal(osc: OscConstants, control: ControlState, action: np.ndarray) -> None:
    """Goal pose of a control step; without any rotation in the action, the previous goal orientation stays."""
    delta = np.empty(6)
    turns = False
    for axis in range(6):
        scale = abs(osc.output_max[axis] - osc.output_min[axis]) / abs(osc.input_max[axis] - osc.input_min[axis])
        clipped = min(osc.input_max[axis], max(osc.input_min[axis], action[axis]))
        centred = clipped - (osc.input_max[axis] + osc.input_min[axis]) / 2.0
        delta[axis] = centred * scale + (osc.output_max[axis] + osc.output_min[axis]) / 2.0
        turns |= axis >= 3 and delta[axis] != 0.0
    for axis in range(3):
        control.goal_position[axis] = control.sensed.position[axis] + delta[axis]
    if turns:
        rotation = _rotation_matrix(delta[3:])
        for column in range(3):
            control.goal_orientation[:, column] = _times(rotation, control.sensed.orientation[:, column])


@compiled
def _rotation_matrix(axis_angle: np.ndarray) -> np.ndarray:
    """(3, 3) rotation, rounded to float32 on the way as robosuite's `quat2mat` does."""
    angle = math.sqrt(axis_angle[0] ** 2 + axis_angle[1] ** 2 + axis_angle[2] ** 2)
    half_sine = math.sin(angle / 2.0)
    quaternion = np.empty(4, np.float32)
    quaternion[0] = math.cos(angle / 2.0)
    for axis in range(3):
        quaternion[1 + axis] = axis_angle[axis] / angle * half_sine
    squared_norm = np.float32(0.0)
    for component in range(4):
        squared_norm += quaternion[component] * quaternion[component]
    norm = math.sqrt(2.0 / squared_norm)
    for component in range(4):
        quaternion[component] *= norm
    products = np.empty((4, 4), np.float32)
    for row in range(4):
        for column in range(4):
            products[row, column] = quaternion[row] * quaternion[column]
    rotation = np.empty((3, 3))
    rotation[0, 0] = 1.0 - products[2, 2] - products[3, 3]
    rotation[0, 1] = products[1, 2] - products[3, 0]
    rotation[0, 2] = products[1, 3] + products[2, 0]
    rotation[1, 0] = products[1, 2] + products[3, 0]
    rotation[1, 1] = 1.0 - products[1, 1] - products[3, 3]
    rotation[1, 2] = products[2, 3] - products[1, 0]
    rotation[2, 0] = products[1, 3] - products[2, 0]
    rotation[2, 1] = products[2, 3] + products[1, 0]
    rotation[2, 2] = 1.0 - products[1, 1] - products[2, 2]
    return rotation


@compiled
def _apply_control(arrays: SlotArrays, osc: OscConstants, control: ControlState, gripper_action: float) -> None:
    """Write the arm's torques and the fingers' targets for one substep into `ctrl`.

    With Jacobian J, mass M, Lambda = (J M^-1 J^T)^-1 and its uncoupled position and rotation blocks:
    torque = J^T [Lambda_pos f; Lambda_rot t] + bias + (I - J^T Lambda J M^-1) M a, where f and t pull towards the goal pose
    and a pulls the joints towards their initial posture.
    """
    sensed, goal = control.sensed, control.goal_orientation
    jacobian, mass, orientation = sensed.jacobian, sensed.mass, sensed.orientation
    pull = np.zeros(6)
    for axis in range(3):
        pull[axis] = control.goal_position[axis] - sensed.position[axis]
        second, third = (axis + 1) % 3, (axis + 2) % 3
        for column in range(3):  # half the sum of the cross products of the axes with their goals
            turn = orientation[second, column] * goal[third, column] - orientation[third, column] * goal[second, column]
            pull[3 + axis] += 0.5 * turn
    for axis in range(6):
        pull[axis] = osc.kp[axis] * pull[axis] - osc.kd[axis] * sensed.velocity[axis]

    mass_inverse = _inverse(mass)
    coupling = np.zeros((6, 6))  # J M^-1 J^T
    for row in range(6):
        for joint in range(_ARM_JOINTS):
            mobility = 0.0
            for other in range(_ARM_JOINTS):
                mobility += jacobian[row, other] * mass_inverse[other, joint]
            for column in range(6):
                coupling[row, column] += mobility * jacobian[column, joint]
    wrench = np.empty(6)
    wrench[:3] = _times(_inverse(coupling[:3, :3]), pull[:3])
    wrench[3:] = _times(_inverse(coupling[3:, 3:]), pull[3:])

    posture = np.empty(_ARM_JOINTS)
    for joint in range(_ARM_JOINTS):
        away = osc.initial_joints[joint] - sensed.joints[joint]
        posture[joint] = _NULL_SPACE_STIFFNESS * away - 2.0 * math.sqrt(_NULL_SPACE_STIFFNESS) * sensed.joint_speeds[joint]
    posture_torque = _times(mass, posture)
    wrench -= _times(_inverse(coupling), _times(jacobian, posture))

    for joint in range(_ARM_JOINTS):
        torque = arrays.qfrc_bias[osc.arm_dofs[joint]] + posture_torque[joint]
        for axis in range(6):
            torque += jacobian[axis, joint] * wrench[axis]
        arrays.ctrl[osc.arm_actuators[joint]] = min(osc.torque_max[joint], max(osc.torque_min[joint], torque))
    for finger in range(2):
        notch = osc.gripper_speed * np.sign(gripper_action) * (2.0 * finger - 1.0)
        control.gripper[finger] = min(1.0, max(-1.0, control.gripper[finger] + notch))
        command = osc.gripper_bias[finger] + osc.gripper_weight[finger] * control.gripper[finger]
        arrays.ctrl[osc.gripper_actuators[finger]] = command


@compiled
def _times(matrix: np.ndarray, vector: np.ndarray) -> np.ndarray:
    """Matrix times vector."""
    result = np.zeros(matrix.shape[0])
    for row in range(matrix.shape[0]):
        for column in range(matrix.shape[1]):
            result[row] += matrix[row, column] * vector[column]
    return result


@compiled
def _inverse(matrix: np.ndarray) -> np.ndarray:
    """Inverse of a small regular matrix: Gauss-Jordan with partial pivoting."""
    size = matrix.shape[0]
    left, right = matrix.copy(), np.eye(size)
    for column in range(size):
        pivot = column
        for row in range(column + 1, size):
            if abs(left[row, column]) > abs(left[pivot, column]):
                pivot = row
        for other in range(size):
            left[column, other], left[pivot, other] = left[pivot, other], left[column, other]
            right[column, other], right[pivot, other] = right[pivot, other], right[column, other]
        scale = 1.0 / left[column, column]
        for other in range(size):
            left[column, other] *= scale
            right[column, other] *= scale
        for row in range(size):
            factor = left[row, column]
            if row != column and factor != 0.0:
                for other in range(size):
                    left[row, other] -= factor * left[column, other]
                    right[row, other] -= factor * right[column, other]
    return right
