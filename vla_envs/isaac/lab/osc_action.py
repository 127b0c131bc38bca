"""LIBERO's controller as an Isaac Lab action term: an action is a change of the end-effector's pose, and the gripper's way.

Isaac Lab's own term launches some 25 small kernels from the host in every substep. Here one kernel computes all torques,
between the two halves of MuJoCo's substep and inside the CUDA graph of the physics (see `physics`); the host only hands over
the action. The kernel is that of the Warp engine, held equal to `libero/controller.py`.
"""

from __future__ import annotations

from dataclasses import MISSING
from typing import Any

import mujoco
import numpy as np
import torch
import warp as wp
from isaaclab.envs import ManagerBasedEnv
from isaaclab.managers import ActionTerm, ActionTermCfg
from isaaclab.utils import configclass
from isaaclab_newton.physics import NewtonManager

from vla_envs.isaac.lab.frames import Frames
from vla_envs.isaac.lab.physics import SolverNames, SubstepSolver
from vla_envs.isaac.lab.task_file import Controller, Frame, load_task_file
from vla_envs.libero.controller import new_control_state
from vla_envs.libero.scene import OscConstants
from vla_envs.vector.control import OSC_DELTA
from vla_envs.vector.engine import ACTION_DIM, PROPRIOCEPTION_DIM
from vla_envs.warp.controller import axis_angle, constants_on_device, control, new_memory

wp.set_module_options({"enable_backward": False})

_ARM_JOINTS = wp.constant(7)


@configclass
class LiberoOscActionCfg(ActionTermCfg):
    """LIBERO's controller. Needs `SubstepSolverCfg`."""

    class_type: Any = "vla_envs.isaac.lab.osc_action:LiberoOscAction"
    task_file: str = MISSING  # type: ignore[assignment]
    """Path of the converted task that the robot and its controller are from."""


class LiberoOscAction(ActionTerm):
    """7 numbers in [-1, 1]: translation, rotation (axis-angle), gripper (-1 open, +1 close)."""

    cfg: LiberoOscActionCfg

    def __init__(self, cfg: LiberoOscActionCfg, env: ManagerBasedEnv) -> None:
        super().__init__(cfg, env)
        solver = NewtonManager._solver
        if not isinstance(solver, SubstepSolver):
            raise ValueError(f"{type(self).__name__} needs a simulation with SubstepSolverCfg, got {type(solver).__name__}")
        self._solver = solver
        with wp.ScopedDevice(self.device):
            task = load_task_file(cfg.task_file)
            self._build(task.controller, task.frames)
        solver.controllers.append(self._control)

    def _build(self, controller: Controller, frames: tuple[Frame, ...]) -> None:
        num_envs, model = self.num_envs, self._solver.mj_model
        names = SolverNames(self._solver)
        self._frames = Frames(self._solver, [frames[controller.grip_frame]])
        self._constants = constants_on_device(model, _osc_constants(controller, names, model), new_control_state())
        arm = [names.joint(name) for name in controller.arm_joints]
        fingers = [names.joint(name) for name in controller.finger_joints]
        self._dofs = wp.array(model.jnt_dofadr[arm + fingers].astype(np.int32), dtype=int)
        self._finger_qpos = wp.array(model.jnt_qposadr[fingers].astype(np.int32), dtype=int)
        self._finger_gain = wp.array(controller.finger_gain, dtype=float)
        self._finger_force = wp.array(controller.finger_force, dtype=float)
        self._hand = names.body(controller.hand)
        self._hand_sign = _hand_sign(model, self._hand, model.jnt_qposadr[arm], controller)
        self._memory = new_memory(num_envs)
        self._commands = wp.zeros((num_envs, len(arm + fingers)), dtype=float)
        self._actions = wp.zeros((1, num_envs, ACTION_DIM), dtype=float)
        self._law = wp.full(1, OSC_DELTA, dtype=int)
        self._first_action = wp.zeros(num_envs, dtype=int)
        self._everyone = wp.full(num_envs, 1, dtype=int)
        self._fresh = wp.full(num_envs, 1, dtype=int)
        self._any_fresh = True
        """Whether some environment was reset since the last step: what it feels is not known yet."""
        self._proprioception = wp.zeros((num_envs, PROPRIOCEPTION_DIM), dtype=float)
        self._substeps, self._substep = controller.substeps, 0
        self._raw = wp.to_torch(self._actions)[0]
        self._start_orientation = torch.tensor(controller.goal_orientation, dtype=torch.float32, device=self.device)
        self._start_fingers = torch.tensor(controller.fingers, dtype=torch.float32, device=self.device)

    @property
    def action_dim(self) -> int:
        """7."""
        return ACTION_DIM

    @property
    def raw_actions(self) -> torch.Tensor:
        """(N, 7), as given."""
        return self._raw

    @property
    def processed_actions(self) -> torch.Tensor:
        """(N, 7): the same; the kernel clips and scales them."""
        return self._raw

    @property
    def proprioception(self) -> torch.Tensor:
        """(N, 8) float32: end-effector position (m), axis-angle (rad), two finger joints (m).

        As LIBERO samples them: one substep before the control step's end, with body poses of that substep's start.
        """
        if self._any_fresh:
            self._any_fresh = False
            with wp.ScopedDevice(self.device):
                self._solver.look()
                self._frames.update()
                self._feel(self._fresh, hand=True, fingers=True)
                self._fresh.zero_()
        return wp.to_torch(self._proprioception)

    def process_actions(self, actions: torch.Tensor) -> None:
        """Take the actions of the next control step, (N, 7)."""
        self._raw.copy_(actions)

    def apply_actions(self) -> None:
        """Nothing: the solver calls the controller in every substep."""

    def reset(self, env_ids: Any = None) -> None:
        """Controllers of these environments know what LIBERO's know when an episode begins."""
        chosen = slice(None) if env_ids is None else env_ids
        wp.to_torch(self._memory.goal_orientation)[chosen] = self._start_orientation
        wp.to_torch(self._memory.fingers)[chosen] = self._start_fingers
        wp.to_torch(self._fresh)[chosen] = 1
        self._any_fresh = True

    def get_memory(self) -> torch.Tensor:
        """(N, 11) float32: all that the controllers remember from one step to the next."""
        memory = self._memory
        parts = (wp.to_torch(memory.goal_orientation).flatten(1), wp.to_torch(memory.fingers))
        return torch.cat(parts, dim=1)

    def set_memory(self, env_ids: torch.Tensor, memory: torch.Tensor) -> None:
        """Make the controllers of some environments remember rows of what `get_memory` returned."""
        wp.to_torch(self._memory.goal_orientation)[env_ids] = memory[:, :9].reshape(-1, 3, 3)
        wp.to_torch(self._memory.fingers)[env_ids] = memory[:, 9:]

    def _control(self) -> None:
        """One substep, between its halves. Called while a graph is captured too: which substep it is, is baked in."""
        data, model, memory = self._solver.mjw_data, self._solver.mjw_model, self._memory
        self._frames.update()
        wp.launch(
            control,
            dim=self.num_envs,
            inputs=[
                self._constants,
                self._law,
                self._substep == 0,
                self._actions,
                self._first_action,
                self._everyone,
                data.qpos,
                data.qvel,
                data.qfrc_bias,
                data.M,
                model.M_elemid,
                data.xanchor,
                data.xaxis,
                self._frames.xpos,
                self._frames.xmat,
            ],
            outputs=[
                memory.stale,
                memory.goal_position,
                memory.goal_orientation,
                memory.goal_joints,
                memory.fingers,
                self._commands,
            ],
        )
        wp.launch(
            _push,
            dim=self._commands.shape,
            inputs=[self._commands, self._dofs, self._finger_qpos, self._finger_gain, self._finger_force, data.qpos],
            outputs=[data.qfrc_applied],
        )
        if self._substep == self._substeps - 2:
            self._feel(self._everyone, hand=True, fingers=False)
        if self._substep == self._substeps - 1:
            self._feel(self._everyone, hand=False, fingers=True)
        self._substep = (self._substep + 1) % self._substeps

    def _feel(self, chosen: wp.array, *, hand: bool, fingers: bool) -> None:
        data = self._solver.mjw_data
        wp.launch(
            _feel,
            dim=self.num_envs,
            inputs=[
                chosen,
                hand,
                fingers,
                self._frames.xpos,
                data.xquat,
                self._hand,
                self._hand_sign,
                data.qpos,
                self._finger_qpos,
            ],
            outputs=[self._proprioception],
        )


def _osc_constants(controller: Controller, names: SolverNames, model: Any) -> OscConstants:
    """The constants with ids of Newton's model; commands are numbered arm first, then fingers."""
    arm = [names.joint(name) for name in controller.arm_joints]
    fingers = [names.joint(name) for name in controller.finger_joints]
    own = {name: getattr(controller, name) for name in OscConstants._fields if hasattr(controller, name)}
    return OscConstants(
        **own,
        arm_qpos=model.jnt_qposadr[arm],
        arm_dofs=model.jnt_dofadr[arm],
        arm_actuators=np.arange(len(arm)),
        gripper_actuators=np.arange(len(arm), len(arm) + len(fingers)),
        gripper_qpos=model.jnt_qposadr[fingers],
        grip_site=0,
        eef_body=names.body(controller.hand),
    )


def _hand_sign(model: Any, hand: int, arm_qpos: np.ndarray, controller: Controller) -> float:
    """1 or -1: a quaternion and its negative are one rotation but two axis-angles, and LIBERO's observation is one of them."""
    data = mujoco.MjData(model)
    data.qpos[arm_qpos] = controller.initial_joints
    mujoco.mj_kinematics(model, data)
    return float(np.sign(data.xquat[hand] @ controller.hand_quaternion))


@wp.kernel
def _push(
    commands: wp.array2d[float],
    dofs: wp.array[int],
    finger_qpos: wp.array[int],
    finger_gain: wp.array[float],
    finger_force: wp.array[float],
    qpos: wp.array2d[float],
    qfrc_applied: wp.array2d[float],
):
    """The arm's torques as they are, the fingers' commands as forces of position servos."""
    world, joint = wp.tid()
    force = commands[world, joint]
    finger = joint - _ARM_JOINTS
    if finger >= 0:
        away = force - qpos[world, finger_qpos[finger]]
        force = wp.clamp(finger_gain[finger] * away, -finger_force[finger], finger_force[finger])
    qfrc_applied[world, dofs[joint]] += force


@wp.kernel
def _feel(
    chosen: wp.array[int],
    hand: bool,
    fingers: bool,
    xpos: wp.array2d[wp.vec3],
    xquat: wp.array2d[wp.quat],
    hand_body: int,
    hand_sign: float,
    qpos: wp.array2d[float],
    finger_qpos: wp.array[int],
    proprioception: wp.array2d[float],
):
    world = wp.tid()
    if chosen[world] == 0:
        return
    if hand:
        turned = axis_angle(hand_sign * xquat[world, hand_body])
        for axis in range(3):
            proprioception[world, axis] = xpos[world, 0][axis]
            proprioception[world, 3 + axis] = turned[axis]
    if fingers:
        for finger in range(2):
            proprioception[world, 6 + finger] = qpos[world, finger_qpos[finger]]
