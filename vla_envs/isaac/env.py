"""LIBERO tasks as Isaac Lab runs tasks: all slots play the same one, and each episode begins in a random initial state."""

import inspect
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any

import numpy as np

from vla_envs.isaac.isaaclab import isaaclab_env
from vla_envs.libero.arguments import check_task
from vla_envs.libero.initial_states import START_NUMBERS, InitialStates
from vla_envs.libero.randomized_starts import EPISODE_SEEDS, RandomizedStarts
from vla_envs.libero.recent_scenes import shared_scene
from vla_envs.libero.suites import suite_tasks
from vla_envs.vector.base import ChunkedVectorEnv
from vla_envs.vector.mujoco_engine import mujoco_engine
from vla_envs.vector.options import check_choice, check_integer, read_options, takes_options
from vla_envs.vector.single_env import maker_of_single
from vla_envs.vector.start import Start
from vla_envs.warp.install import has_warp_on_a_gpu, warp_engine

BACKENDS = ("auto", "isaaclab", "mujoco", "warp")
_KEPT_STATES = 10_000
"""Drawn starts that an env keeps, a kilobyte each."""


@takes_options
class IsaacEnv(ChunkedVectorEnv):
    """N slots of one task, each episode from collision-free placements drawn from the task's own regions.

    Observations, actions and info are as in `LiberoEnv`, but `init_state_id` is always -1: no state is a stored one. The only
    option of `reset` is `reset_mask`.

    Args:
        num_envs: N.
        suite: Suite of the task.
        task_id: The task of all slots.
        backend: "warp" simulates on a GPU (MuJoCo Warp), "mujoco" on any CPU; "isaaclab" needs Isaac Lab; "auto" takes "warp"
            where it is installed and finds a GPU, else "mujoco". The attribute `backend` says what was taken.
        num_starts: How many random starts the task has. Each is settled once, so that later resets are copies. None: every
            episode has a start of its own, and settles it. With "isaaclab", `convert --num-starts` says how many there are.
            Equal seeds give equal starts on all backends.
        task: Only with "isaaclab": any registered, manager-based task of Isaac Lab in place of a LIBERO task. `suite`,
            `task_id`, `cameras`, `image_size` and `scene_dir` say nothing then.
        instruction: What the robot is asked to do in `task`.
        image: Where `task` observes the picture: "group/term", or "group" where the terms are concatenated.
        state: The same for the state; None for none.
        success: Termination term of `task` that says that the goal was reached; None if none does.
        cfg: Changes to the configuration of `task`: new values by dotted names, or a function that is given it.

    Raises:
        MissingDependencyError: What the backend needs is not installed, or LIBERO is needed and is not.
        ValueError: An argument that cannot work; nothing was started.
    """

    def __new__(cls, num_envs: int = 1, *, backend: str = "auto", **arguments: Any) -> Any:
        """Isaac Lab brings its own physics, cameras and episodes: its env is another class, with the same interface."""
        check_choice("backend", backend, BACKENDS)
        return (
            isaaclab_env(num_envs, **arguments)
            if backend == "isaaclab"
            else super().__new__(cls, num_envs, backend=backend, **arguments)
        )

    def __init__(
        self,
        num_envs: int = 1,
        *,
        suite: str = "libero_spatial",
        task_id: int = 0,
        backend: str = "auto",
        num_starts: int | None = 1000,
        task: str | None = None,
        instruction: str | None = None,
        image: str | None = None,
        state: str | None = None,
        success: str | None = None,
        cfg: Any = None,
        **options: Any,
    ) -> None:
        settings = read_options(options, IsaacEnv.__init__)
        check_integer("num_envs", num_envs, least=1)
        if num_starts is not None:
            check_integer("num_starts", num_starts, least=1)
        given = {"task": task, "instruction": instruction, "image": image, "state": state, "success": success, "cfg": cfg}
        for name, value in given.items():
            if value is not None:
                raise ValueError(f"{name} is for backend='isaaclab', got backend={backend!r}")
        if backend == "auto":
            backend = "warp" if settings.device != "cpu" and has_warp_on_a_gpu() else "mujoco"
        self.backend = backend
        folder = settings.scene_folder
        tasks = suite_tasks(suite, scene_dir=folder)
        self._task_id = check_task(suite, tasks, task_id)
        self.suite = suite
        self._scene = shared_scene(suite, self._task_id, settings.detail, folder, sleep=settings.sleep)
        self._scene.check_cameras(settings.drawn_cameras)
        self._num_starts = num_starts
        self._state = lru_cache(_KEPT_STATES)(InitialStates(self._scene.scene).numbered)
        self.randomization = settings.drawn_randomization
        if self.randomization and self.randomization.fixtures:
            raise ValueError(
                "fixtures stay where they are in Isaac-v0, whose objects are placed around them: Libero-v0 moves them"
            )
        self._randomized = self.randomization and RandomizedStarts(self.randomization, suite=suite, scene_dir=folder)
        super().__init__(
            num_envs,
            engine=warp_engine(num_envs, settings) if backend == "warp" else mujoco_engine(num_envs, settings),
            instructions={self._task_id: tasks[self._task_id].instruction},
            time_limit=tasks[self._task_id].max_episode_steps,
            options=settings,
        )
        self.simulation = settings.simulation(engine=backend, sleep=settings.sleep, randomised=self.randomization is not None)

    def _next_start(self, slot: int, rng: np.random.Generator, episode: int, options: Mapping[str, np.ndarray]) -> Start:
        number = int(rng.integers(START_NUMBERS))
        start = self._start(number if self._num_starts is None else number % self._num_starts)
        return self._randomized.draw(start, slot, int(rng.integers(EPISODE_SEEDS))) if self._randomized else start

    def _starts_to_come(self, task_id: int) -> Iterator[Start]:
        return map(self._start, range(self._num_starts or 0))

    def _start(self, number: int) -> Start:
        return Start(
            scene=self._scene,
            state=self._state(number),
            task_id=self._task_id,
            init_state_id=-1,
            instruction=self.instructions[self._task_id],
            key=number,
        )


IsaacEnv.__new__.__signature__ = inspect.signature(IsaacEnv.__init__)  # type: ignore[attr-defined] # what `inspect` shows
make_isaac_env = maker_of_single(IsaacEnv)
