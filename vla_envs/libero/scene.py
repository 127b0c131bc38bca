"""A LIBERO task, compiled once: everything that running it needs, and nothing that needs LIBERO or robosuite.

Invariant: a `Scene` is immutable and shared by all slots of its task, in any number of threads.
"""

from dataclasses import dataclass
from typing import NamedTuple

import mujoco
import numpy as np

from vla_envs.libero.goals import Goal


class OscConstants(NamedTuple):
    """Constants of robosuite's OSC_POSE controller and of the Panda gripper; a named tuple, which compiled code takes as it is.

    Units: metres, radians, seconds, newton metres. Ids and addresses are those of the scene's model; the arm's joints are in
    order from base to flange.
    """

    arm_qpos: np.ndarray
    """(7,) int32: addresses of the arm joints in qpos."""
    arm_dofs: np.ndarray
    """(7,) int32: addresses of the arm joints in qvel."""
    arm_actuators: np.ndarray
    """(7,) int32: torque actuators of the arm."""
    gripper_actuators: np.ndarray
    """(2,) int32: position actuators of the fingers."""
    gripper_qpos: np.ndarray
    """(2,) int32: addresses of the finger joints in qpos."""
    grip_site: int
    """Site that the controller moves (`gripper0_grip_site`)."""
    eef_body: int
    """Body whose orientation robosuite reports as the end-effector quaternion (`robot0_right_hand`)."""
    initial_joints: np.ndarray
    """(7,) float64: joint posture that the null-space term pulls towards."""
    kp: np.ndarray
    """(6,) float64."""
    kd: np.ndarray
    """(6,) float64."""
    input_min: np.ndarray
    """(6,) float64: actions are clipped to [input_min, input_max]."""
    input_max: np.ndarray
    output_min: np.ndarray
    """(6,) float64: ... and scaled linearly to [output_min, output_max] (m, rad)."""
    output_max: np.ndarray
    torque_min: np.ndarray
    """(7,) float64: torques are clipped to [torque_min, torque_max]."""
    torque_max: np.ndarray
    gripper_speed: float
    """How far the gripper's command in [-1, 1] moves per substep towards the action's sign."""
    gripper_bias: np.ndarray
    """(2,) float64: command in [-1, 1] per finger maps to bias + weight * command."""
    gripper_weight: np.ndarray
    """(2,) float64."""
    substeps: int = 25
    """Physics steps per control step (500 Hz / 20 Hz)."""


@dataclass(frozen=True, kw_only=True)
class Placement:
    """Where LIBERO's samplers may place one movable object. The height is not part of it: the stored initial states have it."""

    object_name: str
    qpos_address: int
    """Address of the object's free joint in qpos (7 numbers: position in m, quaternion w x y z)."""
    ranges: np.ndarray
    """(R, 4) float64: R rectangles x_min, y_min, x_max, y_max in metres, along the world's axes; the object's origin lies in
    one of them. Relative to `site` or `attached_to`; without either, in the world frame."""
    site: int
    """Site of the fixture on or in which the object starts; -1: none."""
    attached_to: str
    """Name of the object on which it starts, and which is placed first; "": none."""
    orientation: np.ndarray
    """(4,) float64: quaternion w x y z of the object at yaw 0."""
    yaw_range: np.ndarray
    """(2,) float64, rad: least and largest yaw, by which the object is turned about the vertical."""


@dataclass(frozen=True, kw_only=True)
class VisualSwitch:
    """A site that shows whether a joint is turned (the glow of a stove's burner)."""

    site_id: int
    qpos_address: int
    threshold: float
    """On from this joint position (rad) upwards."""
    rgba_on: np.ndarray
    """(4,) float32."""
    rgba_off: np.ndarray
    """(4,) float32."""


@dataclass(frozen=True, kw_only=True)
class Scene:
    """One compiled task."""

    suite: str
    task_id: int
    name: str
    """LIBERO's task name, as in its file names."""
    instruction: str
    max_episode_steps: int
    """The suite's time limit in control steps, settling not counted."""
    detail: str
    """"full" (LIBERO's own meshes and textures) or "fast" (simplified)."""
    fixture_seed: int
    """Fixtures (cabinets, stoves, microwaves) stand where LIBERO's `seed(fixture_seed)` and `reset()` put them."""
    model: mujoco.MjModel
    init_states: np.ndarray
    """(I, 1 + nq + nv) float64: [time, qpos, qvel], the benchmark's own."""
    goal: Goal
    osc: OscConstants
    placements: tuple[Placement, ...]
    """Of all movable objects, in the order in which LIBERO places them."""
    visual_switches: tuple[VisualSwitch, ...]
    cameras: dict[str, int]
    """Public camera name ("agentview", "wrist") -> camera id of the model."""
