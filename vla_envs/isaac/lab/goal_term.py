"""The task's goal as an Isaac Lab term, and the end of episodes whose physics gave up: kernels over all worlds."""

from __future__ import annotations

from typing import Any

import torch
import warp as wp
from isaaclab.envs import ManagerBasedEnv
from isaaclab.managers import ManagerTermBase, TerminationTermCfg
from isaaclab_newton.physics import NewtonManager

from vla_envs.isaac.lab.frames import Frames
from vla_envs.isaac.lab.physics import SolverNames
from vla_envs.isaac.lab.task_file import ConvertedTask, load_task_file
from vla_envs.libero import goals
from vla_envs.warp.goals import Predicates, find_touching, goal_holds, predicates_on_device
from vla_envs.warp.sanity import is_bad

wp.set_module_options({"enable_backward": False})


class GoalReached(ManagerTermBase):
    """(N,) bool: whether the goal held at the end of the control step, judged as LIBERO judges it.

    Args:
        cfg: `params["task_file"]` is the path of the converted task.
        env: Steps with `SubstepSolver`.
    """

    def __init__(self, cfg: TerminationTermCfg, env: ManagerBasedEnv) -> None:
        super().__init__(cfg, env)
        task = load_task_file(cfg.params["task_file"])
        self._solver = NewtonManager._solver
        with wp.ScopedDevice(self.device):
            names, model = SolverNames(self._solver), self._solver.mj_model
            self._frames = Frames(self._solver, task.frames)
            self._predicates: Predicates = predicates_on_device(_goal_of(task, names, model), model.ngeom)
            self._touching = wp.zeros(self.num_envs, dtype=wp.uint64)
            self._held = wp.zeros(self.num_envs, dtype=wp.bool)

    def __call__(self, env: ManagerBasedEnv, task_file: str) -> torch.Tensor:
        """Judge all worlds, by what MuJoCo computed in the last substep."""
        data = self._solver.mjw_data
        with wp.ScopedDevice(self.device):
            self._frames.update()
            self._touching.zero_()
            wp.launch(
                find_touching,
                dim=data.naconmax,
                inputs=[self._predicates, data.nacon, data.contact.geom, data.contact.worldid],
                outputs=[self._touching],
            )
            wp.launch(
                _judge,
                dim=self.num_envs,
                inputs=[self._predicates, data.qpos, self._frames.xpos, self._frames.xmat, self._touching],
                outputs=[self._held],
            )
        return wp.to_torch(self._held)


class GaveUp(ManagerTermBase):
    """(N,) bool: where physics diverged, or contacts and constraints were dropped because the buffers are too small."""

    def __init__(self, cfg: TerminationTermCfg, env: ManagerBasedEnv) -> None:
        super().__init__(cfg, env)
        self._solver = NewtonManager._solver
        self._gave_up = wp.zeros(self.num_envs, dtype=wp.bool, device=self.device)

    def __call__(self, env: ManagerBasedEnv) -> torch.Tensor:
        data = self._solver.mjw_data
        wp.launch(
            _give_up,
            dim=self.num_envs,
            inputs=[self._solver.overflowed, data.qpos, data.qvel, data.qacc],
            outputs=[self._gave_up],
            device=self.device,
        )
        return wp.to_torch(self._gave_up)

    def reset(self, env_ids: Any = None) -> None:
        """Forget what these environments dropped."""
        wp.to_torch(self._solver.overflowed)[slice(None) if env_ids is None else env_ids] = 0


def _goal_of(task: ConvertedTask, names: SolverNames, model: Any) -> goals.Goal:
    """The goal with addresses and geoms of Newton's model; bodies and sites stay indices into the task's frames."""
    addresses = [int(model.jnt_qposadr[names.joint(joint)]) for joint in task.goal.joints]
    predicates = []
    for predicate in task.goal.predicates:
        numbered = dict(predicate)
        if "qpos_addresses" in numbered:
            numbered["qpos_addresses"] = [addresses[joint] for joint in numbered["qpos_addresses"]]
        predicates.append(numbered)
    pairs = [[[names.geom(geom) for geom in side] for side in pair] for pair in task.goal.contact_pairs]
    return goals.goal_from_json({"predicates": predicates, "contact_pairs": pairs})


@wp.kernel
def _judge(
    predicates: Predicates,
    qpos: wp.array2d[float],
    xpos: wp.array2d[wp.vec3],
    xmat: wp.array2d[wp.mat33],
    touching: wp.array[wp.uint64],
    held: wp.array[wp.bool],
):
    world = wp.tid()
    held[world] = goal_holds(predicates, world, qpos, xpos, xpos, xmat, touching)


@wp.kernel
def _give_up(
    overflowed: wp.array[int],
    qpos: wp.array2d[float],
    qvel: wp.array2d[float],
    qacc: wp.array2d[float],
    gave_up: wp.array[wp.bool],
):
    world = wp.tid()
    bad = overflowed[world] != 0
    for index in range(qpos.shape[1]):
        bad = bad or is_bad(qpos[world, index])
    for index in range(qvel.shape[1]):
        bad = bad or is_bad(qvel[world, index]) or is_bad(qacc[world, index])
    gave_up[world] = bad
