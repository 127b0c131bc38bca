"""robosuite's control laws as functions of what the controller senses: where to go, and the torques that lead there.

A law has two parts. The first is called once per control step, and turns the action into a goal, in memory of the caller's. The
second is called in every physics step, and adds the arm's torques to those that hold it against gravity. Which law an env plays
is its `control`, see `vector/control.py`.

    osc_delta       OperationalSpaceController                        set_relative_pose   add_pose_torques
    osc_absolute    OperationalSpaceController(control_delta=False)   set_absolute_pose   add_pose_torques
    joint_position  JointPositionController                           set_joint_goal      add_joint_torques

Metres, radians, newton metres, world frame. Reference: O. Khatib, "A unified approach for motion and force control of robot
manipulators", IEEE J-RA 3(1), 1987.
"""

import math
from typing import NamedTuple

import numpy as np

from vla_envs.libero.scene import OscConstants
from vla_envs.vector.compiled import compiled

ARM_JOINTS = 7
JOINT_STIFFNESS = 50.0
"""1/s^2, of robosuite's JOINT_POSITION controller, which is critically damped."""
JOINT_REACH = 0.05
"""rad: how far from where it is a joint is sent by an action of 1."""
_NULL_SPACE_STIFFNESS = 10.0


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


@compiled
def set_relative_pose(
    osc: OscConstants, sensed: Sensed, action: np.ndarray, goal_position: np.ndarray, goal_orientation: np.ndarray
) -> None:
    """From six numbers, clipped and scaled; without any rotation in them, the previous goal orientation (3, 3) stays."""
    delta = np.empty(6)
    turns = False
    for axis in range(6):
        scale = abs(osc.output_max[axis] - osc.output_min[axis]) / abs(osc.input_max[axis] - osc.input_min[axis])
        clipped = min(osc.input_max[axis], max(osc.input_min[axis], action[axis]))
        centred = clipped - (osc.input_max[axis] + osc.input_min[axis]) / 2.0
        delta[axis] = centred * scale + (osc.output_max[axis] + osc.output_min[axis]) / 2.0
        turns |= axis >= 3 and delta[axis] != 0.0
    for axis in range(3):
        goal_position[axis] = sensed.position[axis] + delta[axis]
    if turns:
        rotation = _rotation_matrix(delta[3:])
        for column in range(3):
            goal_orientation[:, column] = _times(rotation, sensed.orientation[:, column])


@compiled
def set_absolute_pose(action: np.ndarray, goal_position: np.ndarray, goal_orientation: np.ndarray) -> None:
    """From the position (m) and axis-angle (rad) of the grip site in the world, as they are: robosuite clips neither."""
    goal_position[:] = action[:3]
    goal_orientation[:] = _rotation_matrix(action[3:6])


@compiled
def set_joint_goal(sensed: Sensed, action: np.ndarray, goal_joints: np.ndarray) -> None:
    """From seven numbers, clipped and scaled: how far each joint is to go from where it is."""
    for joint in range(ARM_JOINTS):
        goal_joints[joint] = sensed.joints[joint] + JOINT_REACH * min(1.0, max(-1.0, action[joint]))


@compiled
def add_pose_torques(
    osc: OscConstants, sensed: Sensed, goal_position: np.ndarray, goal_orientation: np.ndarray, torques: np.ndarray
) -> None:
    """Operational-space control, to `torques` (7,).

    With Jacobian J, mass M, Lambda = (J M^-1 J^T)^-1 and its uncoupled position and rotation blocks:
    torque += J^T [Lambda_pos f; Lambda_rot t] + (I - J^T Lambda J M^-1) M a, where f and t pull towards the goal pose
    and a pulls the joints towards their initial posture.
    """
    jacobian, mass, orientation, goal = sensed.jacobian, sensed.mass, sensed.orientation, goal_orientation
    pull = np.zeros(6)
    for axis in range(3):
        pull[axis] = goal_position[axis] - sensed.position[axis]
        second, third = (axis + 1) % 3, (axis + 2) % 3
        for column in range(3):  # half the sum of the cross products of the axes with their goals
            turn = orientation[second, column] * goal[third, column] - orientation[third, column] * goal[second, column]
            pull[3 + axis] += 0.5 * turn
    for axis in range(6):
        pull[axis] = osc.kp[axis] * pull[axis] - osc.kd[axis] * sensed.velocity[axis]

    mass_inverse = _inverse(mass)
    coupling = np.zeros((6, 6))  # J M^-1 J^T
    for row in range(6):
        for joint in range(ARM_JOINTS):
            mobility = 0.0
            for other in range(ARM_JOINTS):
                mobility += jacobian[row, other] * mass_inverse[other, joint]
            for column in range(6):
                coupling[row, column] += mobility * jacobian[column, joint]
    wrench = np.empty(6)
    wrench[:3] = _times(_inverse(coupling[:3, :3]), pull[:3])
    wrench[3:] = _times(_inverse(coupling[3:, 3:]), pull[3:])

    posture = np.empty(ARM_JOINTS)
    for joint in range(ARM_JOINTS):
        away = osc.initial_joints[joint] - sensed.joints[joint]
        posture[joint] = _NULL_SPACE_STIFFNESS * away - 2.0 * math.sqrt(_NULL_SPACE_STIFFNESS) * sensed.joint_speeds[joint]
    posture_torque = _times(mass, posture)
    wrench -= _times(_inverse(coupling), _times(jacobian, posture))

    for joint in range(ARM_JOINTS):
        torque = torques[joint] + posture_torque[joint]
        for axis in range(6):
            torque += jacobian[axis, joint] * wrench[axis]
        torques[joint] = torque


@compiled
def add_joint_torques(sensed: Sensed, goal_joints: np.ndarray, torques: np.ndarray) -> None:
    """Critically damped springs at the joints, to `torques` (7,): torque += M (k (goal - q) - 2 sqrt(k) dq/dt)."""
    pull = np.empty(ARM_JOINTS)
    for joint in range(ARM_JOINTS):
        away = goal_joints[joint] - sensed.joints[joint]
        pull[joint] = JOINT_STIFFNESS * away - 2.0 * math.sqrt(JOINT_STIFFNESS) * sensed.joint_speeds[joint]
    torques += _times(sensed.mass, pull)


@compiled
def _rotation_matrix(axis_angle: np.ndarray) -> np.ndarray:
    """(3, 3) rotation, rounded to float32 on the way as robosuite's `quat2mat` does."""
    angle = math.sqrt(axis_angle[0] ** 2 + axis_angle[1] ** 2 + axis_angle[2] ** 2)
    if angle == 0.0:  # also of numbers so small that their squares are 0
        return np.eye(3)
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
