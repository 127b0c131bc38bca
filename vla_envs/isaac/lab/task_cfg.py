"""A converted task as an Isaac Lab environment: what `gym.make` and `ManagerBasedRLEnv` take."""

from __future__ import annotations

from typing import Any

import isaaclab.envs.mdp as mdp
import torch
from isaaclab.envs import ManagerBasedEnv, ManagerBasedRLEnvCfg
from isaaclab.managers import (
    EventTermCfg,
    ObservationGroupCfg,
    ObservationTermCfg,
    RewardTermCfg,
    TerminationTermCfg,
)
from isaaclab.utils import configclass
from isaaclab_newton.physics import NewtonCfg, NewtonShapeCfg

from vla_envs.isaac.lab.goal_term import GaveUp, GoalReached
from vla_envs.isaac.lab.osc_action import LiberoOscActionCfg
from vla_envs.isaac.lab.physics import SubstepSolverCfg
from vla_envs.isaac.lab.pictures import SAMPLES, CameraPicture
from vla_envs.isaac.lab.resets import BeginAtRandomStart
from vla_envs.isaac.lab.scene_cfg import scene_cfg
from vla_envs.isaac.lab.task_file import ConvertedTask
from vla_envs.vector.spaces import image_key

CONTACTS_PER_WORLD = 200
CONSTRAINTS_PER_WORLD = 800


def libero_env_cfg(
    task: ConvertedTask,
    *,
    num_envs: int = 1,
    cameras: tuple[str, ...] = ("agentview",),
    image_size: int = 256,
    quality: str = "fast",
    max_episode_steps: int | None = None,
    device: str | None = None,
) -> ManagerBasedRLEnvCfg:
    """The environment of a task.

    Observations are a group `policy` of `image`, `wrist_image` (N, H, W, 3) uint8, mirrored left to right as in the published
    LIBERO sets, and `state` (N, 8). The reward is 1 where the goal is reached, which terminates; the time limit and physics
    that gave up truncate.

    Args:
        task: Says all the rest.
        num_envs: N.
        cameras: Any of the task's.
        image_size: H = W in pixels.
        quality: "fast" traces one ray per pixel, "match" four.
        max_episode_steps: Time limit in control steps; None takes the task's.
        device: "cuda:0" or "cpu"; None takes the GPU where there is one.
    """
    cfg = ManagerBasedRLEnvCfg()
    cfg.decimation = task.controller.substeps
    cfg.sim.dt = task.options["timestep"]
    cfg.sim.render_interval = cfg.decimation
    cfg.sim.device = device or ("cuda:0" if torch.cuda.is_available() else "cpu")
    cfg.sim.physics = _physics(task)
    limit = max_episode_steps or task.max_episode_steps
    cfg.episode_length_s = (limit - 0.5) * cfg.decimation * cfg.sim.dt  # Isaac Lab rounds it up to whole steps
    cfg.scene = scene_cfg(task, num_envs=num_envs, cameras=cameras, pixels=image_size * SAMPLES[quality])
    file = str(task.file)
    robot = next(part.name for part in task.parts if part.kind == "robot")
    cfg.actions, cfg.observations, cfg.events = _Actions(), _Observations(), _Events()
    cfg.terminations, cfg.rewards = _Terminations(), _Rewards()
    cfg.actions.arm = LiberoOscActionCfg(asset_name=robot, task_file=file)
    cfg.observations.policy = _observed(file, cameras, quality)
    cfg.events.begin = EventTermCfg(func=BeginAtRandomStart, mode="reset", params={"task_file": file})
    cfg.terminations.success = TerminationTermCfg(func=GoalReached, params={"task_file": file})
    weight = 1.0 / (cfg.decimation * cfg.sim.dt)  # Isaac Lab multiplies rewards by the time of a step
    cfg.rewards.success = RewardTermCfg(func=mdp.is_terminated_term, params={"term_keys": "success"}, weight=weight)
    return cfg


def proprioception(env: ManagerBasedEnv, action: str) -> torch.Tensor:
    """(N, 8) float32, see `LiberoOscAction.proprioception`."""
    return env.action_manager.get_term(action).proprioception.clone()


@configclass
class _Actions:
    arm: Any = None


@configclass
class _Observations:
    policy: Any = None


@configclass
class _Events:
    begin: Any = None


@configclass
class _Terminations:
    success: Any = None
    gave_up = TerminationTermCfg(func=GaveUp, time_out=True)
    time_out = TerminationTermCfg(func=mdp.time_out, time_out=True)


@configclass
class _Rewards:
    success: Any = None


def _observed(file: str, cameras: tuple[str, ...], quality: str) -> ObservationGroupCfg:
    group = ObservationGroupCfg(concatenate_terms=False, enable_corruption=False)
    for name in cameras:
        term = ObservationTermCfg(func=CameraPicture, params={"task_file": file, "camera": name, "quality": quality})
        setattr(group, image_key(name), term)
    group.state = ObservationTermCfg(func=proprioception, params={"action": "arm"})
    return group


def _physics(task: ConvertedTask) -> NewtonCfg:
    options = task.options
    solver = SubstepSolverCfg(
        nconmax=CONTACTS_PER_WORLD,
        njmax=CONSTRAINTS_PER_WORLD,
        cone="elliptic" if options["elliptic"] else "pyramidal",
        impratio=options["impratio"],
        iterations=int(options["iterations"]),
        ls_iterations=int(options["ls_iterations"]),
        tolerance=options["tolerance"],
        solver="newton",
        integrator="euler",
        density=options["density"],
        viscosity=options["viscosity"],
        free_joint_damping={f"{part.name}/{part.root}": part.damping for part in task.parts if part.kind == "object"},
    )
    return NewtonCfg(solver_cfg=solver, default_shape_cfg=NewtonShapeCfg(gap=0.0))
