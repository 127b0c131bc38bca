"""The one simulation of a process: Isaac Lab has a second one only after the first is closed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from importlib.util import find_spec
from typing import Any

import gymnasium as gym
import torch
from isaaclab.envs import ManagerBasedRLEnv, ManagerBasedRLEnvCfg
from isaaclab.sim import SimulationContext

from vla_envs.isaac.lab.task_file import ConvertedTask
from vla_envs.vector.gl_context import Device


def make_libero(
    task: ConvertedTask,
    *,
    num_envs: int,
    cameras: tuple[str, ...],
    image_size: int,
    quality: str,
    max_episode_steps: int | None,
    device: Device,
) -> ManagerBasedRLEnv:
    """A converted task.

    Raises:
        ValueError: This process has a simulation already, or there is no such device.
    """
    name = _device(device)
    _prepare()
    from vla_envs.isaac.lab.task_cfg import libero_env_cfg  # Isaac Sim, where it is, starts first
    from vla_envs.isaac.lab.tasks import LiberoTaskEnv

    cfg = libero_env_cfg(
        task,
        num_envs=num_envs,
        cameras=cameras,
        image_size=image_size,
        quality=quality,
        max_episode_steps=max_episode_steps,
        device=name,
    )
    cfg.compute_final_obs = True
    return LiberoTaskEnv(cfg=cfg)


def make_registered(
    task: str,
    *,
    num_envs: int,
    cfg: Callable[[Any], None] | Mapping[str, Any] | None,
    max_episode_steps: int | None,
    device: Device,
) -> ManagerBasedRLEnv:
    """Any registered, manager-based task of Isaac Lab.

    Args:
        task: Its id.
        num_envs: N.
        cfg: Changes the task's own configuration: a function that is given it, or new values by dotted names
            (`{"scene.ground": None}`).
        max_episode_steps: Time limit in steps; None takes the task's.
        device: Where it is simulated.

    Raises:
        ValueError: There is no such task, it is not manager-based, a name in `cfg` is unknown, or this process has a simulation
            already.
    """
    name = _device(device)
    _prepare()
    import isaaclab_tasks  # noqa: F401 # registers them
    from isaaclab_tasks.utils import parse_env_cfg

    if task not in gym.registry:
        raise ValueError(f"there is no Isaac Lab task {task!r}: python -m isaaclab list names those that are registered")
    config = parse_env_cfg(task, device=name, num_envs=num_envs)
    if not isinstance(config, ManagerBasedRLEnvCfg):
        raise ValueError(f"{task} is not a manager-based task with rewards, and no other kind can be played")
    if callable(cfg):
        cfg(config)
    else:
        for path, value in (cfg or {}).items():
            _set(config, path, value)
    if max_episode_steps is not None:
        config.episode_length_s = (max_episode_steps - 0.5) * config.decimation * config.sim.dt
    config.compute_final_obs = True
    return gym.make(task, cfg=config).unwrapped  # type: ignore[return-value]


def _set(config: Any, path: str, value: Any) -> None:
    *parents, last = path.split(".")
    for parent in parents:
        config = getattr(config, parent, None)
    if config is None or not hasattr(config, last):
        raise ValueError(f"the task's configuration has no {path!r}")
    setattr(config, last, value)


def _device(device: Device) -> str:
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("device='cuda': there is no GPU that PyTorch can use; leave it out, or say device='cpu'")
    return "cuda:0" if device != "cpu" and torch.cuda.is_available() else "cpu"


def _prepare() -> None:
    if SimulationContext.instance() is not None:
        raise ValueError(
            "Isaac Lab has one simulation per process, and this process has it: close that env, or start a process per env"
        )
    if find_spec("isaacsim") is not None:
        _launch_isaac_sim()


@cache
def _launch_isaac_sim() -> Any:
    """Isaac Sim must run before its modules are imported. Not needed where Newton runs without it."""
    from isaaclab.app import AppLauncher

    return AppLauncher(headless=True, enable_cameras=True)
