"""LIBERO tasks as Isaac Lab runs tasks: all slots play the same one, and each episode begins in a random initial state."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from vla_envs.isaac.isaaclab import require_isaaclab
from vla_envs.isaac.randomize import InitialStates
from vla_envs.libero.arguments import check_task
from vla_envs.libero.recent_scenes import shared_scene
from vla_envs.libero.suites import suite_tasks
from vla_envs.vector.base import ChunkedVectorEnv
from vla_envs.vector.mujoco_engine import mujoco_engine
from vla_envs.vector.options import EnvOptions, check_choice, check_integer, takes_options
from vla_envs.vector.single_env import maker_of_single
from vla_envs.vector.start import Start

BACKENDS = ("auto", "isaaclab", "mujoco")


@takes_options
class IsaacEnv(ChunkedVectorEnv):
    """N slots of one task, each episode from collision-free placements drawn from the task's own regions.

    Observations, actions and info are as in `LiberoEnv`, but `init_state_id` is always -1: no state is a stored one. The only
    option of `reset` is `reset_mask`.

    Args:
        num_envs: N.
        suite: Suite of the task.
        task_id: The task of all slots.
        backend: "mujoco" runs on any CPU; "isaaclab" needs Isaac Lab; "auto" takes what can run here. The attribute `backend`
            says what was taken.

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
        **options: Any,
    ) -> None:
        settings = EnvOptions(**options)
        check_integer("num_envs", num_envs, least=1)
        check_choice("backend", backend, BACKENDS)
        if backend == "isaaclab":
            require_isaaclab()
        self.backend = "mujoco"
        folder = settings.scene_folder
        tasks = suite_tasks(suite, scene_dir=folder)
        self._task_id = check_task(suite, tasks, task_id)
        self.suite = suite
        self._scene = shared_scene(suite, self._task_id, settings.detail, folder)
        self._initial_states = InitialStates(self._scene.scene)
        super().__init__(
            num_envs,
            engine=mujoco_engine(num_envs, settings),
            instructions={self._task_id: tasks[self._task_id].instruction},
            time_limit=tasks[self._task_id].max_episode_steps,
            options=settings,
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


make_isaac_env = maker_of_single(IsaacEnv)
