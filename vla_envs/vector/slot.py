"""What compiled code sees of one slot: live views of its mjData, what it records for goals, and what it shows to cameras.

Invariant: everything here belongs to one slot, as a view of its mjData or as a copy. So slots may be stepped in many threads.
"""

from typing import NamedTuple

import mujoco
import numpy as np

from vla_envs.vector.compiled import compiled
from vla_envs.vector.mujoco_c import ContactLayout, read_int32, read_int64

POSES = ("xpos", "xmat", "geom_xpos", "geom_xmat", "site_xpos", "site_xmat", "cam_xpos", "cam_xmat", "light_xpos", "light_xdir")
"""Arrays of mjData that MuJoCo's visualiser reads."""

FAULTS = (mujoco.mjtWarning.mjWARN_BADQPOS, mujoco.mjtWarning.mjWARN_BADQVEL, mujoco.mjtWarning.mjWARN_BADQACC)
"""Warnings after which MuJoCo has reset the simulation: the episode cannot go on."""


class SlotArrays(NamedTuple):
    """Live views of one mjData. Metres, radians, world frame."""

    model_address: int
    data_address: int
    qpos: np.ndarray
    qvel: np.ndarray
    ctrl: np.ndarray
    qfrc_bias: np.ndarray
    xpos: np.ndarray
    """(nbody, 3)."""
    xquat: np.ndarray
    """(nbody, 4) w x y z."""
    xmat: np.ndarray
    """(nbody, 9) row-major."""
    site_xpos: np.ndarray
    """(nsite, 3)."""
    site_xmat: np.ndarray
    """(nsite, 9) row-major."""
    warnings: np.ndarray
    """(mjNWARNING,) int32: how often each was raised."""
    poses: tuple[np.ndarray, ...]
    """The arrays named in `POSES`."""


class GoalRecord(NamedTuple):
    """What goals look at, after each of K control steps."""

    qpos: np.ndarray
    """(K, nq)."""
    body_xpos: np.ndarray
    """(K, nbody, 3)."""
    site_xpos: np.ndarray
    """(K, nsite, 3)."""
    site_xmat: np.ndarray
    """(K, nsite, 9)."""
    touching: np.ndarray
    """(K, P) bool."""


class ContactPairs(NamedTuple):
    """P <= 64 pairs of geom sets: bit p of `first[g]` says that geom g is in the first set of pair p."""

    first: np.ndarray
    """(ngeom,) uint64."""
    second: np.ndarray
    """(ngeom,) uint64."""


class View(NamedTuple):
    """What the cameras see and the robot feels at one instant: a copy, so that physics may go on while it is drawn."""

    poses: np.ndarray
    """Concatenation of the `POSES` arrays, flat."""
    switches_on: np.ndarray
    """(V,) bool: which visual switches show their "on" look."""
    proprioception: np.ndarray
    """(8,): end-effector position (m), axis-angle (rad), two gripper joints (m)."""
    robot_state: np.ndarray
    """(`ROBOT_STATE_DIM`,): a row as `robot_state` has it."""


def slot_arrays(model: mujoco.MjModel, data: mujoco.MjData) -> SlotArrays:
    """Live views of `data`, which must outlive them."""
    return SlotArrays(
        model_address=model._address,
        data_address=data._address,
        qpos=data.qpos,
        qvel=data.qvel,
        ctrl=data.ctrl,
        qfrc_bias=data.qfrc_bias,
        xpos=data.xpos,
        xquat=data.xquat,
        xmat=data.xmat,
        site_xpos=data.site_xpos,
        site_xmat=data.site_xmat,
        warnings=data.warning.number,
        poses=tuple(getattr(data, name) for name in POSES),
    )


def contact_pairs(num_geoms: int, pairs: tuple[tuple[np.ndarray, np.ndarray], ...]) -> ContactPairs:
    """Pack pairs of geom-id sets into bit masks."""
    assert len(pairs) <= 64, "a goal asks about more than 64 contacts"
    masks = ContactPairs(first=np.zeros(num_geoms, np.uint64), second=np.zeros(num_geoms, np.uint64))
    for pair, (first, second) in enumerate(pairs):
        masks.first[np.asarray(first, int)] |= np.uint64(1 << pair)
        masks.second[np.asarray(second, int)] |= np.uint64(1 << pair)
    return masks


def empty_record(model: mujoco.MjModel, num_steps: int, num_pairs: int) -> GoalRecord:
    """Room for `num_steps` control steps."""
    return GoalRecord(
        qpos=np.zeros((num_steps, model.nq)),
        body_xpos=np.zeros((num_steps, model.nbody, 3)),
        site_xpos=np.zeros((num_steps, model.nsite, 3)),
        site_xmat=np.zeros((num_steps, model.nsite, 9)),
        touching=np.zeros((num_steps, num_pairs), np.bool_),
    )


@compiled
def has_fault(arrays: SlotArrays, faults: np.ndarray) -> bool:
    """Whether MuJoCo has given up on this simulation."""
    return (arrays.warnings[faults] > 0).any()


@compiled
def record_goal_inputs(arrays: SlotArrays, layout: ContactLayout, pairs: ContactPairs, record: GoalRecord, step: int) -> None:
    """Copy what goals look at; body and site poses are those of the last substep's start, as LIBERO's own check sees them."""
    record.qpos[step] = arrays.qpos
    record.body_xpos[step] = arrays.xpos
    record.site_xpos[step] = arrays.site_xpos
    record.site_xmat[step] = arrays.site_xmat
    touched = np.uint64(0)
    if record.touching.shape[1] > 0:
        contact = read_int64(arrays.data_address + layout.array_offset) + layout.geom_offset
        for _ in range(read_int32(arrays.data_address + layout.count_offset)):
            geom1, geom2 = read_int32(contact), read_int32(contact + 4)
            if geom1 >= 0 and geom2 >= 0:
                touched |= (pairs.first[geom1] & pairs.second[geom2]) | (pairs.first[geom2] & pairs.second[geom1])
            contact += layout.stride
    for pair in range(record.touching.shape[1]):
        record.touching[step, pair] = (touched >> np.uint64(pair)) & np.uint64(1)


@compiled
def copy_poses(poses: tuple[np.ndarray, ...], flat: np.ndarray) -> None:
    """Copy the arrays that the visualiser reads into one flat array."""
    start = 0
    for pose in poses:
        for row in range(pose.shape[0]):
            for column in range(pose.shape[1]):
                flat[start] = pose[row, column]
                start += 1


def show_poses(flat: np.ndarray, data: mujoco.MjData) -> None:
    """The inverse of `copy_poses`: put them into the mjData that is drawn."""
    start = 0
    for name in POSES:
        pose = getattr(data, name)
        pose[:] = flat[start : start + pose.size].reshape(pose.shape)
        start += pose.size


def camera_pose(flat: np.ndarray, model: mujoco.MjModel, camera_id: int) -> tuple[np.ndarray, np.ndarray]:
    """Of a camera of the model, from what `copy_poses` wrote: position (3,) in m and rotation (3, 3)."""
    start = 12 * (model.nbody + model.ngeom + model.nsite)
    turned = start + 3 * model.ncam + 9 * camera_id
    return flat[start + 3 * camera_id :][:3], flat[turned : turned + 9].reshape(3, 3)
