"""What worlds look like and feel at one instant, for cameras and policies: kernels that pass over worlds that do not play."""

from typing import Any

import warp as wp

from vla_envs.warp.controller import Constants, axis_angle

wp.set_module_options({"enable_backward": False})


@wp.kernel
def copy_playing(left: wp.array[int], source: wp.array2d[Any], target: wp.array2d[Any]):
    world, item = wp.tid()
    if left[world] > 0:
        target[world, item] = source[world, item]


@wp.kernel
def feel(
    left: wp.array[int],
    constants: Constants,
    site_xpos: wp.array2d[wp.vec3],
    xquat: wp.array2d[wp.quat],
    qpos: wp.array2d[float],
    proprioception: wp.array2d[float],
):
    world = wp.tid()
    if left[world] == 0:
        return
    position = site_xpos[world, constants.grip_site]
    turned = axis_angle(xquat[world, constants.eef_body])
    for axis in range(3):
        proprioception[world, axis] = position[axis]
        proprioception[world, 3 + axis] = turned[axis]
    for finger in range(2):
        proprioception[world, 6 + finger] = qpos[world, constants.finger_qpos[finger]]


@wp.kernel
def read_robot(
    left: wp.array[int],
    constants: Constants,
    gripper_dofs: wp.array[int],
    qpos: wp.array2d[float],
    qvel: wp.array2d[float],
    site_xpos: wp.array2d[wp.vec3],
    xquat: wp.array2d[wp.quat],
    xmat: wp.array2d[wp.mat33],
    rows: wp.array2d[float],
):
    """As `_read_robot` of `libero/controller.py`."""
    world = wp.tid()
    if left[world] == 0:
        return
    for joint in range(7):
        angle = qpos[world, constants.arm_qpos[joint]]
        rows[world, joint] = angle
        rows[world, 7 + joint] = wp.cos(angle)
        rows[world, 14 + joint] = wp.sin(angle)
        rows[world, 21 + joint] = qvel[world, constants.arm_dofs[joint]]
    position = site_xpos[world, constants.grip_site]
    wxyz = xquat[world, constants.eef_body]
    rotation = xmat[world, constants.eef_body]
    for axis in range(3):
        rows[world, 28 + axis] = position[axis]
        rows[world, 31 + axis] = wxyz[1 + axis]
        for column in range(3):
            rows[world, 35 + 3 * axis + column] = rotation[axis, column]
    rows[world, 34] = wxyz[0]
    for finger in range(2):
        rows[world, 44 + finger] = qpos[world, constants.finger_qpos[finger]]
        rows[world, 46 + finger] = qvel[world, gripper_dofs[finger]]
