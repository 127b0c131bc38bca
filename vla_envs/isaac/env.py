"""LIBERO tasks the way Isaac Lab runs tasks: one task shared by all slots, every episode from a random initial state."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium.vector import AutoresetMode

from vla_envs.isaac.isaaclab import require_isaaclab
from vla_envs.isaac.randomize import InitialStates
from vla_envs.libero.arguments import check_arguments, check_task
from vla_envs.libero.recent_scenes import shared_scene
from vla_envs.libero.suites import suite_tasks
from vla_envs.vector.base import ChunkedVectorEnv
from vla_envs.vector.gl_context import Device
from vla_envs.vector.mujoco_engine import MujocoEngine
from vla_envs.vector.single_env import SingleEnv
from vla_envs.vector.start import Start

BACKENDS = ("auto", "isaaclab", "mujoco")


class IsaacEnv(ChunkedVectorEnv):
    """N slots of one task, each episode from collision-free placements drawn from the task's own regions.

    Observations, actions and info are `LiberoEnv`'s; `init_state_id` is -1, since no state is a stored one. `reset` takes no
    option but `reset_mask`.

    Args:
        num_envs: N.
        suite: Suite of the task.
        task_id: The task of all slots.
        backend: "mujoco" runs on any CPU; "isaaclab" needs Isaac Lab; "auto" takes what can run here. The attribute `backend`
            says which it is.
        device: Where cameras draw; see `LiberoEnv`, as for all further arguments.

    Raises:
        MissingDependencyError: Isaac Lab was asked for and is not installed, or LIBERO is needed and is not.
        ValueError: An argument that cannot work; nothing was started.
    """

    def __init__(
        self,
        num_envs: int = 1,
        *,
        suite: str = "libero_spatial",
        task_id: int = 0,
        backend: str = "auto",
        chunk_size: int | None = None,
        image_size: int = 256,
        cameras: Sequence[str] = ("agentview",),
        detail: str = "full",
        device: Device = "auto",
        max_episode_steps: int | None = None,
        autoreset_mode: AutoresetMode | str = AutoresetMode.NEXT_STEP,
        settle_steps: int = 10,
        scene_dir: str | Path | None = None,
        num_threads: int | None = None,
        render_mode: str | None = None,
    ) -> None:
        check_arguments(
            num_envs=num_envs,
            chunk_size=chunk_size,
            image_size=image_size,
            cameras=cameras,
            detail=detail,
            device=device,
            max_episode_steps=max_episode_steps,
            autoreset_mode=autoreset_mode,
            settle_steps=settle_steps,
            num_threads=num_threads,
            render_mode=render_mode,
        )
        if backend not in BACKENDS:
            raise ValueError(f"backend must be one of {', '.join(BACKENDS)}, got {backend!r}")
        if backend == "isaaclab":
            require_isaaclab()
        self.backend = "mujoco"
        folder = None if scene_dir is None else Path(scene_dir)
        tasks = suite_tasks(suite, scene_dir=folder)
        self._task_id = check_task(suite, tasks, task_id)
        self.suite = suite
        self._scene = shared_scene(suite, self._task_id, detail, folder)
        self._initial_states = InitialStates(self._scene.scene)
        super().__init__(
            num_envs,
            engine=MujocoEngine(num_envs, device=device if cameras else None, num_threads=num_threads),
            instructions={self._task_id: tasks[self._task_id].instruction},
            max_episode_steps=max_episode_steps or tasks[self._task_id].max_episode_steps,
            chunk_size=chunk_size,
            image_size=image_size,
            cameras=cameras,
            autoreset_mode=autoreset_mode,
            settle_steps=settle_steps,
            render_mode=render_mode,
        )

    def _next_start(self, slot: int, rng: np.random.Generator, episode: int, options: Mapping[str, np.ndarray]) -> Start:
        return Start(
            scene=self._scene,
            state=self._initial_states.draw(rng),
            task_id=self._task_id,
            init_state_id=-1,
            instruction=self.instructions[self._task_id],
            cache_key=None,
        )


def make_isaac_env(*, time_limit: int | None = None, **kwargs: Any) -> SingleEnv:
    """One env for `gymnasium.make`; takes `IsaacEnv`'s arguments, with `time_limit` (control steps) for `max_episode_steps`."""
    return SingleEnv(IsaacEnv(1, autoreset_mode=AutoresetMode.DISABLED, max_episode_steps=time_limit, **kwargs))
