"""robosuite's controllers for N worlds at once, in Warp: what `libero/control_laws.py` does for one slot in compiled code.

That module is the reference: its docstring says what is computed, and a test holds the two equal. Here one thread serves one
world, in float32, between MuJoCo Warp's `step1` and `step2`; nothing is read back, so that a CUDA graph can hold it.
"""

from dataclasses import dataclass
from typing import Any

import mujoco
import numpy as np
import warp as wp

from vla_envs.libero.control_laws import JOINT_REACH, JOINT_STIFFNESS
from vla_envs.libero.controller import ControlState
from vla_envs.libero.scene import OscConstants
from vla_envs.vector.control import JOINT_POSITION, OSC_ABSOLUTE

wp.set_module_options({"enable_backward": False})

_Vector6 = wp.types.vector(6, float)
_Vector7 = wp.types.vector(7, float)
_Matrix66 = wp.types.matrix((6, 6), float)
_Matrix67 = wp.types.matrix((6, 7), float)
_Matrix77 = wp.types.matrix((7, 7), float)
_STIFFNESS = wp.constant(10.0)
"""Of the pull towards the initial posture, in the arm's null space."""
_JOINT_STIFFNESS, _JOINT_REACH = wp.constant(JOINT_STIFFNESS), wp.constant(JOINT_REACH)
_OSC_ABSOLUTE, _JOINT_POSITION = wp.constant(OSC_ABSOLUTE), wp.constant(JOINT_POSITION)


@wp.struct
class Constants:
    """`OscConstants` on the device, and what the controller sensed in the reset posture. Metres, radians, newton metres."""

    arm_qpos: wp.array[int]
    arm_dofs: wp.array[int]
    arm_joints: wp.array[int]
    arm_actuators: wp.array[int]
    finger_qpos: wp.array[int]
    finger_actuators: wp.array[int]
    grip_site: int
    eef_body: int
    initial_joints: wp.array[float]
    kp: wp.array[float]
    kd: wp.array[float]
    lowest: wp.array[float]
    highest: wp.array[float]
    scale: wp.array[float]
    middle_in: wp.array[float]
    middle_out: wp.array[float]
    torque_min: wp.array[float]
    torque_max: wp.array[float]
    finger_speed: float
    finger_bias: wp.array[float]
    finger_weight: wp.array[float]
    stale_position: wp.vec3
    stale_orientation: wp.mat33
    stale_jacobian: wp.array2d[float]
    stale_mass: wp.array2d[float]


@dataclass(frozen=True, kw_only=True)
class Memory:
    """What N controllers remember."""

    stale: wp.array
    """(N,) int32: 1 until the first substep of an episode has been played."""
    goal_position: wp.array
    """(N,) vec3."""
    goal_orientation: wp.array
    """(N,) mat33."""
    goal_joints: wp.array
    """(N, 7) float32: of `joint_position` alone."""
    fingers: wp.array
    """(N, 2) float32: the fingers' commands in [-1, 1]."""


def constants_on_device(model: mujoco.MjModel, osc: OscConstants, initial: ControlState) -> Constants:
    """The controller's constants for one scene, on Warp's current device."""
    constants = Constants()
    integers = {
        "arm_qpos": osc.arm_qpos,
        "arm_dofs": osc.arm_dofs,
        "arm_joints": [int(np.flatnonzero(model.jnt_dofadr == dof)[0]) for dof in osc.arm_dofs],
        "arm_actuators": osc.arm_actuators,
        "finger_qpos": osc.gripper_qpos,
        "finger_actuators": osc.gripper_actuators,
    }
    numbers = {
        "initial_joints": osc.initial_joints,
        "kp": osc.kp,
        "kd": osc.kd,
        "lowest": osc.input_min,
        "highest": osc.input_max,
        "scale": np.abs(osc.output_max - osc.output_min) / np.abs(osc.input_max - osc.input_min),
        "middle_in": (osc.input_max + osc.input_min) / 2.0,
        "middle_out": (osc.output_max + osc.output_min) / 2.0,
        "torque_min": osc.torque_min,
        "torque_max": osc.torque_max,
        "finger_bias": osc.gripper_bias,
        "finger_weight": osc.gripper_weight,
        "stale_jacobian": initial.sensed.jacobian,
        "stale_mass": initial.sensed.mass,
    }
    for name, values in integers.items():
        setattr(constants, name, wp.array(np.asarray(values), dtype=int))
    for name, values in numbers.items():
        setattr(constants, name, wp.array(np.asarray(values), dtype=float))
    constants.grip_site, constants.eef_body = int(osc.grip_site), int(osc.eef_body)
    constants.finger_speed = float(osc.gripper_speed)
    constants.stale_position = wp.vec3(*map(float, initial.sensed.position))
    constants.stale_orientation = wp.mat33(*map(float, initial.sensed.orientation.ravel()))
    return constants


def new_memory(num_worlds: int) -> Memory:
    """Memory for N controllers, all zeros."""
    return Memory(
        stale=wp.zeros(num_worlds, dtype=int),
        goal_position=wp.zeros(num_worlds, dtype=wp.vec3),
        goal_orientation=wp.zeros(num_worlds, dtype=wp.mat33),
        goal_joints=wp.zeros((num_worlds, 7), dtype=float),
        fingers=wp.zeros((num_worlds, 2), dtype=float),
    )


@wp.kernel
def forget(
    constants: Constants,
    chosen: wp.array[int],
    stale: wp.array[int],
    goal_position: wp.array[wp.vec3],
    goal_orientation: wp.array[wp.mat33],
    fingers: wp.array2d[float],
):
    """Controllers of the chosen worlds know what robosuite's know after `reset`."""
    world = chosen[wp.tid()]
    stale[world] = 1
    goal_position[world] = constants.stale_position
    goal_orientation[world] = constants.stale_orientation
    fingers[world, 0] = 0.0
    fingers[world, 1] = 0.0


@wp.func
def axis_angle(wxyz: wp.quat) -> wp.vec3:
    """Radians about each axis, as robosuite computes them from a quaternion in MuJoCo's order; those of its negative differ."""
    cosine = wp.clamp(wxyz[0], -1.0, 1.0)
    length = wp.sqrt(1.0 - cosine * cosine)
    if length == 0.0:
        return wp.vec3()
    return wp.vec3(wxyz[1], wxyz[2], wxyz[3]) * (2.0 * wp.acos(cosine) / length)


@wp.func
def _factor(matrix: Any, size: int):
    """Lower Cholesky factor of a symmetric matrix, in its lower triangle."""
    for column in range(size):
        for row in range(column, size):
            total = matrix[row, column]
            for other in range(column):
                total -= matrix[row, other] * matrix[column, other]
            if row == column:
                matrix[row, column] = wp.sqrt(total)
            else:
                matrix[row, column] = total / matrix[column, column]
    return matrix


@wp.func
def _solve(factor: Any, vector: Any, size: int):
    """The vector x of L L^T x = b."""
    for row in range(size):
        total = vector[row]
        for other in range(row):
            total -= factor[row, other] * vector[other]
        vector[row] = total / factor[row, row]
    for back in range(size):
        row = size - 1 - back
        total = vector[row]
        for other in range(row + 1, size):
            total -= factor[other, row] * vector[other]
        vector[row] = total / factor[row, row]
    return vector


@wp.func
def _rotation(axis_angle: wp.vec3) -> wp.mat33:
    """The rotation about an axis by its length in radians."""
    angle = wp.length(axis_angle)
    if angle == 0.0:
        return wp.identity(n=3, dtype=float)
    return wp.quat_to_matrix(wp.quat_from_axis_angle(axis_angle / angle, angle))


@wp.func
def _pose_torques(
    constants: Constants,
    position: wp.vec3,
    orientation: wp.mat33,
    joints: Any,
    speeds: Any,
    jacobian: Any,
    mass: Any,
    goal_position: wp.vec3,
    goal: wp.mat33,
):
    """What the arm's joints need to turn towards a pose, besides what holds them against gravity."""
    away = goal_position - position
    turn = wp.vec3()
    for column in range(3):
        mine = wp.vec3(orientation[0, column], orientation[1, column], orientation[2, column])
        wanted = wp.vec3(goal[0, column], goal[1, column], goal[2, column])
        turn += 0.5 * wp.cross(mine, wanted)
    velocity = jacobian * speeds
    force, torque = wp.vec3(), wp.vec3()
    for row in range(3):
        force[row] = constants.kp[row] * away[row] - constants.kd[row] * velocity[row]
        torque[row] = constants.kp[3 + row] * turn[row] - constants.kd[3 + row] * velocity[3 + row]

    factor = _factor(mass * 1.0, 7)
    coupling = _Matrix66()  # J M^-1 J^T
    for column in range(6):
        effect = _Vector7()
        for joint in range(7):
            effect[joint] = jacobian[column, joint]
        moved = jacobian * _solve(factor, effect, 7)
        for row in range(6):
            coupling[row, column] = moved[row]
    linear, angular = wp.mat33(), wp.mat33()
    for row in range(3):
        for column in range(3):
            linear[row, column] = coupling[row, column]
            angular[row, column] = coupling[3 + row, 3 + column]
    force = wp.inverse(linear) * force
    torque = wp.inverse(angular) * torque

    posture = _Vector7()
    for joint in range(7):
        posture[joint] = (
            _STIFFNESS * (constants.initial_joints[joint] - joints[joint]) - 2.0 * wp.sqrt(_STIFFNESS) * speeds[joint]
        )
    posture_torque = mass * posture
    felt = _solve(_factor(coupling * 1.0, 6), jacobian * posture, 6)
    wrench = _Vector6()
    for row in range(3):
        wrench[row] = force[row] - felt[row]
        wrench[3 + row] = torque[row] - felt[3 + row]
    return wp.transpose(jacobian) * wrench + posture_torque


@wp.func
def _set_pose(
    constants: Constants,
    law: int,
    world: int,
    given: Any,
    position: wp.vec3,
    orientation: wp.mat33,
    goal_position: wp.array[wp.vec3],
    goal_orientation: wp.array[wp.mat33],
):
    """The goal of a world's control step, from the first six numbers of its action and where its hand is."""
    if law == _OSC_ABSOLUTE:
        goal_position[world] = wp.vec3(given[0], given[1], given[2])
        goal_orientation[world] = _rotation(wp.vec3(given[3], given[4], given[5]))
        return
    delta = _Vector6()
    turns = int(0)
    for axis_id in range(6):
        clipped = wp.clamp(given[axis_id], constants.lowest[axis_id], constants.highest[axis_id])
        centred = clipped - constants.middle_in[axis_id]
        delta[axis_id] = centred * constants.scale[axis_id] + constants.middle_out[axis_id]
        if axis_id >= 3 and delta[axis_id] != 0.0:
            turns = 1
    goal_position[world] = position + wp.vec3(delta[0], delta[1], delta[2])
    if turns == 1:
        goal_orientation[world] = _rotation(wp.vec3(delta[3], delta[4], delta[5])) * orientation


@wp.func
def _move_fingers(constants: Constants, world: int, grip: float, fingers: wp.array2d[float], ctrl: wp.array2d[float]):
    """A notch further the way that the gripper's number says, which is its sign."""
    way = float(0.0)
    if grip != 0.0:
        way = wp.sign(grip)
    for finger in range(2):
        notch = constants.finger_speed * way * (2.0 * float(finger) - 1.0)
        command = wp.clamp(fingers[world, finger] + notch, -1.0, 1.0)
        fingers[world, finger] = command
        ctrl[world, constants.finger_actuators[finger]] = (
            constants.finger_bias[finger] + constants.finger_weight[finger] * command
        )


@wp.kernel
def control(
    constants: Constants,
    law: wp.array[int],
    first_substep: bool,
    actions: wp.array3d[float],
    played: wp.array[int],
    left: wp.array[int],
    qpos: wp.array2d[float],
    qvel: wp.array2d[float],
    qfrc_bias: wp.array2d[float],
    mass_entries: wp.array2d[float],
    mass_address: wp.array2d[int],
    anchors: wp.array2d[wp.vec3],
    axes: wp.array2d[wp.vec3],
    site_xpos: wp.array2d[wp.vec3],
    site_xmat: wp.array2d[wp.mat33],
    stale: wp.array[int],
    goal_position: wp.array[wp.vec3],
    goal_orientation: wp.array[wp.mat33],
    goal_joints: wp.array2d[float],
    fingers: wp.array2d[float],
    ctrl: wp.array2d[float],
):
    """Torques and finger targets of one substep by a control law, (1,), for the worlds that play; the others keep theirs."""
    world = wp.tid()
    if left[world] == 0:
        return
    position = site_xpos[world, constants.grip_site]
    orientation = site_xmat[world, constants.grip_site]
    joints, speeds = _Vector7(), _Vector7()
    jacobian, mass = _Matrix67(), _Matrix77()
    for joint in range(7):
        axis = axes[world, constants.arm_joints[joint]]
        sweep = wp.cross(axis, position - anchors[world, constants.arm_joints[joint]])
        for row in range(3):
            jacobian[row, joint] = sweep[row]
            jacobian[3 + row, joint] = axis[row]
        joints[joint] = qpos[world, constants.arm_qpos[joint]]
        speeds[joint] = qvel[world, constants.arm_dofs[joint]]
        for other in range(joint + 1):
            address = mass_address[constants.arm_dofs[joint], constants.arm_dofs[other]]
            mass[joint, other] = mass_entries[world, address]
            mass[other, joint] = mass_entries[world, address]
    if stale[world] == 1:
        stale[world] = 0
        position = constants.stale_position
        orientation = constants.stale_orientation
        for joint in range(7):
            joints[joint] = constants.initial_joints[joint]
            speeds[joint] = 0.0
            for row in range(6):
                jacobian[row, joint] = constants.stale_jacobian[row, joint]
            for other in range(7):
                mass[other, joint] = constants.stale_mass[other, joint]

    step, chosen = played[world], law[0]
    grip = actions[step, world, 6]
    torques = _Vector7()
    if chosen == _JOINT_POSITION:
        grip = actions[step, world, 7]
        if first_substep:
            for joint in range(7):
                goal_joints[world, joint] = joints[joint] + _JOINT_REACH * wp.clamp(actions[step, world, joint], -1.0, 1.0)
        pull = _Vector7()
        for joint in range(7):
            away = goal_joints[world, joint] - joints[joint]
            pull[joint] = _JOINT_STIFFNESS * away - 2.0 * wp.sqrt(_JOINT_STIFFNESS) * speeds[joint]
        torques = mass * pull
    else:
        if first_substep:
            given = _Vector6()
            for axis_id in range(6):
                given[axis_id] = actions[step, world, axis_id]
            _set_pose(constants, chosen, world, given, position, orientation, goal_position, goal_orientation)
        goal, place = goal_orientation[world], goal_position[world]
        torques = _pose_torques(constants, position, orientation, joints, speeds, jacobian, mass, place, goal)
    for joint in range(7):
        total = torques[joint] + qfrc_bias[world, constants.arm_dofs[joint]]
        ctrl[world, constants.arm_actuators[joint]] = wp.clamp(total, constants.torque_min[joint], constants.torque_max[joint])
    _move_fingers(constants, world, grip, fingers, ctrl)
