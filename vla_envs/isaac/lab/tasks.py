"""Converted tasks as registered Isaac Lab tasks: `Isaac-Libero-Spatial-0-v0`, `Isaac-Libero-Goal-3-v0`, ...

from vla_envs.isaac.lab.tasks import register_tasks

register_tasks(folder)
env = gym.make("Isaac-Libero-Goal-0-v0", cfg=parse_env_cfg("Isaac-Libero-Goal-0-v0", device="cuda:0", num_envs=64))
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import gymnasium as gym
import numpy as np
import torch
from gymnasium.envs.registration import registry
from gymnasium.vector.utils import batch_space
from isaaclab.envs import ManagerBasedRLEnv, ManagerBasedRLEnvCfg

from vla_envs.isaac.lab.task_cfg import libero_env_cfg
from vla_envs.isaac.lab.task_file import converted_tasks, load_task
from vla_envs.vector.engine import ACTION_DIM


class LiberoTaskEnv(ManagerBasedRLEnv):
    """A converted task. Actions are in [-1, 1], and a start may be asked for by number."""

    def __init__(self, cfg: ManagerBasedRLEnvCfg, **options: object) -> None:
        self.episode_seeds: torch.Tensor | None = None
        """(N,) int64: where it is set, an episode begins in the start of that number, modulo how many there are."""
        super().__init__(cfg=cfg, **options)

    def _configure_gym_env_spaces(self) -> None:
        super()._configure_gym_env_spaces()
        self.single_action_space = gym.spaces.Box(-1.0, 1.0, (ACTION_DIM,), np.float32)
        self.action_space = batch_space(self.single_action_space, self.num_envs)


def register_tasks(folder: str | Path) -> tuple[str, ...]:
    """Register all converted tasks of a folder; ids that are there already are left alone.

    Returns:
        Their ids.

    Raises:
        SceneFormatError: It is not a folder of converted tasks.
    """
    names = []
    for suite, task_id in converted_tasks(Path(folder)):
        name = f"Isaac-{'-'.join(part.capitalize() for part in suite.split('_'))}-{task_id}-v0"
        names.append(name)
        if name not in registry:
            gym.register(
                id=name,
                entry_point=f"{__name__}:{LiberoTaskEnv.__name__}",
                disable_env_checker=True,
                kwargs={"env_cfg_entry_point": _cfg_maker(Path(folder), suite, task_id)},
            )
    return tuple(names)


def _cfg_maker(folder: Path, suite: str, task_id: int) -> Callable[[], ManagerBasedRLEnvCfg]:
    """A function, as Isaac Lab's registry wants it, that makes the task's configuration, with all its cameras."""

    def make_cfg() -> ManagerBasedRLEnvCfg:
        task = load_task(folder, suite, task_id)
        return libero_env_cfg(task, cameras=tuple(task.views))

    return make_cfg
