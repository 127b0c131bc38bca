"""Newton's MuJoCo Warp solver with LIBERO's options, and a place for a controller between the two halves of a substep.

MuJoCo computes poses, mass matrix and bias forces in the first half, and accelerations in the second. A controller that runs
between them acts on the present, without computing anything twice. All substeps of a control step, the controller in them, are
one CUDA graph: the manager says so to Isaac Lab, which then calls it once per control step.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import warp as wp
from isaaclab.utils import configclass
from isaaclab_newton.physics import MJWarpSolverCfg, NewtonManager
from isaaclab_newton.physics.mjwarp_manager import NewtonMJWarpManager
from mujoco_warp import OverflowType
from newton import JointType, Model
from newton.solvers import SolverMuJoCo

wp.set_module_options({"enable_backward": False})

_OVERFLOWS = OverflowType.NEFC | OverflowType.NJMAX_NNZ | OverflowType.BROADPHASE | OverflowType.NARROWPHASE
_DROPPED = wp.constant(int(_OVERFLOWS))


@configclass
class SubstepSolverCfg(MJWarpSolverCfg):
    """`MJWarpSolverCfg` with what MuJoCo knows and USD does not."""

    class_type: Any = "vla_envs.isaac.lab.physics:NewtonSubstepManager"
    density: float = 0.0
    """Of the air, kg/m^3."""
    viscosity: float = 0.0
    """Of the air, Pa s."""
    free_joint_damping: dict[str, float] = {}  # noqa: RUF012 # a configclass copies it
    """`<entity>/<body>` of free bodies -> damping of their six degrees of freedom."""


class SubstepSolver(SolverMuJoCo):
    """`SolverMuJoCo` that calls controllers in the middle of every substep, and remembers what did not fit its buffers."""

    def __init__(self, model: Model, **options: Any) -> None:
        self.controllers: list[Callable[[], None]] = []
        """Launch kernels that add to `mjw_data.qfrc_applied`; graphs hold them, so nothing may be read back."""
        super().__init__(model, **options)
        self.overflowed = wp.zeros(self.mjw_data.nworld, dtype=int, device=model.device)
        """(N,) int32: not 0 where contacts or constraints were dropped since it was cleared."""

    def look(self) -> None:
        """Compute the poses of Newton's state in `mjw_data`, which otherwise has those of the last substep's start."""
        NewtonManager.forward()
        self._update_mjc_data(self.mjw_data, self.model, NewtonManager.get_state_0())
        self._mujoco_warp.kinematics(self.mjw_model, self.mjw_data)

    def _mujoco_warp_step(self) -> None:
        self._mujoco_warp.step1(self.mjw_model, self.mjw_data)
        for controller in self.controllers:
            controller()
        self._mujoco_warp.step2(self.mjw_model, self.mjw_data)
        wp.launch(_remember_overflow, dim=self.mjw_data.nworld, inputs=[self.mjw_data.overflow], outputs=[self.overflowed])


class NewtonSubstepManager(NewtonMJWarpManager):
    """`NewtonMJWarpManager` that plays all substeps of a control step in one call.

    Isaac Lab takes it for one of Newton by its name.
    """

    @classmethod
    def _create_solver(cls, model: Model, solver_cfg: SubstepSolverCfg) -> SubstepSolver:
        options = cls._filter_solver_kwargs(SolverMuJoCo, solver_cfg)
        options.pop("ls_parallel", None)
        _keep_what_stands_apart(model)
        solver = SubstepSolver(model, **options)
        names = SolverNames(solver)
        damping = solver.mjw_model.dof_damping.numpy()
        for body, value in solver_cfg.free_joint_damping.items():
            first = int(solver.mj_model.jnt_dofadr[solver.mj_model.body_jntadr[names.body(body)]])
            damping[:, first : first + 6] = value
        solver.mjw_model.dof_damping = wp.array(damping, dtype=float, device=model.device)
        return solver

    @classmethod
    def _is_all_graphable(cls) -> bool:
        return cls._adapter is None or super()._is_all_graphable()


class SolverNames:
    """Ids of what the USD files name, in the MuJoCo model that Newton has made of them.

    Args:
        solver: Built.
    """

    def __init__(self, solver: SolverMuJoCo) -> None:
        self._bodies = _by_name(solver.mjc_body_to_newton, solver.model.body_label)
        self._joints = _by_name(solver.mjc_jnt_to_newton_jnt, solver.model.joint_label)
        self._geoms = _by_name(solver.mjc_geom_to_newton_shape, solver.model.shape_label)

    def body(self, name: str) -> int:
        """Id of `<entity>/<body>`; 0 for "", the world."""
        return self._bodies[name] if name else 0

    def joint(self, name: str) -> int:
        """Id of `<entity>/<joint>`."""
        return self._joints[name]

    def geom(self, name: str) -> int:
        """Id of `<entity>/<body>/<geom>`."""
        return self._geoms[name]


def _keep_what_stands_apart(model: Model) -> None:
    """Let what cannot move touch nothing that cannot move: a robot's base and its table.

    MuJoCo leaves such contacts out. Newton makes a body of its own of each fixed base, so they would stay: constraints on
    nothing, with forces of 1e17 N.
    """
    moves = np.zeros(model.body_count + 1, bool)  # the last is the world, body -1
    for joint_type, parent, child in zip(
        model.joint_type.numpy(), model.joint_parent.numpy(), model.joint_child.numpy(), strict=True
    ):  # parents come first
        moves[child] = moves[parent] or joint_type != JointType.FIXED
    groups = model.shape_collision_group.numpy()
    stands = ~moves[model.shape_body.numpy()]
    groups[stands & (groups > 0)] *= -1  # a negative group touches all but itself
    model.shape_collision_group.assign(groups)


@wp.kernel
def _remember_overflow(overflow: wp.array[int], overflowed: wp.array[int]):
    world = wp.tid()
    overflowed[world] = overflowed[world] | (overflow[world] & _DROPPED)


def _by_name(to_newton: wp.array, labels: list[str]) -> dict[str, int]:
    """Ids in MuJoCo's model by USD path under the first environment, the folder of an entity's joints left out."""
    newton = np.asarray(to_newton.numpy())[0]
    found = {}
    for mujoco_id, newton_id in enumerate(newton.tolist()):
        if newton_id >= 0:
            parts = labels[newton_id].split("/")
            inside = parts[parts.index("env_0") + 1 :] if "env_0" in parts else parts
            found["/".join(part for part in inside if part != "joints")] = mujoco_id
    return found
