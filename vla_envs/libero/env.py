"""The LIBERO benchmark as a vector env: each slot plays a task of its own, from the initial states that LIBERO stores."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from vla_envs.errors import UnsupportedTaskError
from vla_envs.libero.arguments import choose_tasks, task_span
from vla_envs.libero.cache import exported_file
from vla_envs.libero.engine_scene import LiberoEngineScene
from vla_envs.libero.expert.expert import Expert
from vla_envs.libero.expert.plan import why_declined
from vla_envs.libero.own_goal import own_goal
from vla_envs.libero.own_states import read_init_states
from vla_envs.libero.own_suite import drawn_states, own_scene, own_suite, scene_task
from vla_envs.libero.privileged import PrivilegedView
from vla_envs.libero.randomized_starts import EPISODE_SEEDS, RandomizedStarts
from vla_envs.libero.recent_scenes import RecentScenes
from vla_envs.libero.suites import suite_tasks
from vla_envs.vector.base import ChunkedVectorEnv
from vla_envs.vector.engine import StepResult
from vla_envs.vector.mujoco_engine import mujoco_engine
from vla_envs.vector.options import check_choice, check_integer, read_options, takes_options
from vla_envs.vector.single_env import maker_of_single
from vla_envs.vector.start import Start
from vla_envs.warp.install import warp_engine


@takes_options
class LiberoEnv(ChunkedVectorEnv):
    """Tasks of one LIBERO suite in N slots.

    Without options, slot i plays entries i, i + N, i + 2N, ... of `task_ids` (cyclically), each time from an initial state
    drawn from its own seeded stream. `reset` takes the options `task_id` and `init_state_id`.

    Success and reward are the task's (1 where its goal holds, else 0), unless functions of one's own say them. These are called
    after each control step that a slot plays, in order, with the slot's `PrivilegedView`, in the thread that called `step`; and
    once when the env is first reset, to see that they work. What they raise is raised by `step`. An env that is pickled, as for
    processes, needs functions of a module.

    Args:
        num_envs: N.
        suite: Any suite that the installed LIBERO knows, or that `scene_dir` holds.
        task_ids: The tasks that may be played, in their order; one that is listed twice has two turns. None: all of the suite.
            The attribute of this name lists each task once.
        task_id: Short for `task_ids` of one task.
        bddl_file: A task of one's own: the path of a BDDL file; or a list of them, whose places are their task ids. `suite`
            says nothing then, and the attribute of this name is made from what the files say.
        init_states: Initial states of one's own in place of the stored ones, (I, 1 + nq + nv) [time, qpos, qvel]: an array; a
            file, `.npy`, `.npz` or (with PyTorch) LIBERO's `.pruned_init`; or a mapping from task ids to either. None: the
            stored ones; of a `bddl_file` 50 that are drawn from its regions, without collisions.
        success_fn: Called with a `PrivilegedView`, says whether the task is done; or its name, "MODULE:NAME". None: the goal.
        reward_fn: Called with a `PrivilegedView`, returns the reward of a control step; or its name. Rewards of a chunk are
            added up. None: 1 for success, else 0.
        engine: "mujoco": MuJoCo itself, on any CPU, drawn by OpenGL. "warp": MuJoCo Warp, on a GPU, where many slots of a task
            are simulated together; slots of different tasks one task after the other.

    Raises:
        MissingDependencyError: LIBERO is needed and is not installed, or MuJoCo Warp is.
        ValueError: An argument that cannot work; nothing was started.
    """

    _slot_methods = (*ChunkedVectorEnv._slot_methods, "privileged", "make_expert", "expert_declines")

    def __init__(
        self,
        num_envs: int = 1,
        *,
        suite: str = "libero_spatial",
        task_ids: Sequence[int] | None = None,
        task_id: int | None = None,
        bddl_file: str | Path | Sequence[str | Path] | None = None,
        init_states: Any = None,
        success_fn: Callable[[PrivilegedView], bool] | str | None = None,
        reward_fn: Callable[[PrivilegedView], float] | str | None = None,
        engine: str = "mujoco",
        **options: Any,
    ) -> None:
        settings = read_options(options, LiberoEnv.__init__)
        check_integer("num_envs", num_envs, least=1)
        check_choice("engine", engine, ("mujoco", "warp"))
        folder = settings.scene_folder
        self._own_goal = own_goal(success_fn, reward_fn)
        self._goal_tried = self._own_goal is None
        files: tuple[Path, ...] = ()
        if bddl_file is not None:
            if folder is not None:
                raise ValueError(f"give bddl_file, which LIBERO itself compiles, or scene_dir, got {bddl_file!r} and {folder}")
            suite, files = own_suite(bddl_file)
        self.suite = suite
        self._scenes = RecentScenes(suite, settings.detail, folder, sleep=settings.sleep)
        tasks = {} if files else suite_tasks(suite, scene_dir=folder)
        chosen = choose_tasks(suite, range(len(files)) if files else tasks, task_ids=task_ids, task_id=task_id)
        for chosen_id in dict.fromkeys(chosen) if files else ():
            tasks[chosen_id] = scene_task(own_scene(self._scenes, chosen_id, files[chosen_id]))
        self._own_states = self._read_states(init_states, chosen, files)
        if folder is not None:
            for chosen_id in chosen:
                exported_file(suite, chosen_id, detail=settings.detail, scene_dir=folder)
        self.randomization = settings.drawn_randomization
        self._randomized = self.randomization and RandomizedStarts(self.randomization, suite=suite, scene_dir=folder)
        super().__init__(
            num_envs,
            engine=warp_engine(num_envs, settings) if engine == "warp" else mujoco_engine(num_envs, settings),
            instructions={chosen_id: tasks[chosen_id].instruction for chosen_id in chosen},
            time_limit=tasks[chosen[0]].max_episode_steps,
            options=settings,
        )
        self.simulation = settings.simulation(
            engine=engine,
            sleep=settings.sleep,
            randomised=self.randomization is not None,
            own_states=init_states is not None,
            own_goal=self._own_goal is not None,
        )
        stored = {chosen_id: tasks[chosen_id].num_init_states for chosen_id in chosen}
        self.num_init_states = stored | {task: len(states) for task, states in self._own_states.items()}
        self._turns = chosen

    def _read_states(self, given: Any, chosen: Sequence[int], files: Sequence[Path]) -> dict[int, np.ndarray]:
        """By task, the initial states that are not those of its scene."""
        if given is not None and not isinstance(given, Mapping):
            if len(set(chosen)) > 1:
                raise ValueError(f"init_states of {len(set(chosen))} tasks must be a mapping from task ids, got {type(given)}")
            given = {chosen[0]: given}
        given = {int(key) if str(key).isdecimal() else key: states for key, states in (given or {}).items()}  # JSON's are text
        if not set(given) <= set(chosen):
            raise ValueError(f"init_states has tasks {list(given)}, and the env plays {sorted(set(chosen))}")
        states = {}
        for task_id in dict.fromkeys(chosen):
            if task_id in given:
                scene = self._scenes[task_id].scene
                width = 1 + scene.model.nq + scene.model.nv
                states[task_id] = read_init_states(given[task_id], width=width, task=f"{self.suite} task {task_id}")
            elif files:
                states[task_id] = drawn_states(self._scenes[task_id].scene, files[task_id])
        return states

    def _check_options(self, options: Mapping[str, np.ndarray], slots: Sequence[int], episodes: np.ndarray) -> None:
        unknown = set(options) - {"task_id", "init_state_id"}
        if unknown:
            raise ValueError(f"unknown reset option {min(unknown)!r}: this env takes reset_mask, task_id, init_state_id")
        for name, values in options.items():
            if not np.issubdtype(values.dtype, np.integer):
                raise ValueError(f"reset option {name!r} must be integers, got {values.dtype}")
        for slot in slots:
            task_id = self._task_of(slot, int(episodes[slot]), options)
            if task_id not in self.num_init_states:
                raise ValueError(f"task_id must be one of {task_span(self.task_ids)}, got {task_id} for slot {slot}")
            if "init_state_id" in options:
                state_id, count = int(options["init_state_id"][slot]), self.num_init_states[task_id]
                if not 0 <= state_id < count:
                    raise ValueError(f"init_state_id of task {task_id} must be in 0..{count - 1}, got {state_id}")
        tasks = {self._task_of(slot, int(episodes[slot]), options) for slot in slots}
        self._scenes.load(tasks)
        for task_id in tasks:
            self._scenes[task_id].check_cameras(self._cameras.values())

    def _task_of(self, slot: int, episode: int, options: Mapping[str, np.ndarray]) -> int:
        if "task_id" in options:
            return int(options["task_id"][slot])
        return self._turns[(slot + episode * self.num_envs) % len(self._turns)]

    def _next_start(self, slot: int, rng: np.random.Generator, episode: int, options: Mapping[str, np.ndarray]) -> Start:
        task_id = self._task_of(slot, episode, options)
        drawn = int(rng.integers(self.num_init_states[task_id]))
        init_state_id = int(options["init_state_id"][slot]) if "init_state_id" in options else drawn
        start = self._start(task_id, init_state_id)
        return self._randomized.draw(start, slot, int(rng.integers(EPISODE_SEEDS))) if self._randomized else start

    def _starts_to_come(self, task_id: int) -> Iterator[Start]:
        return (self._start(task_id, init_state_id) for init_state_id in range(self.num_init_states[task_id]))

    def _start(self, task_id: int, init_state_id: int) -> Start:
        scene = self._scenes[task_id]
        states = self._own_states.get(task_id, scene.scene.init_states)
        return Start(
            scene=scene,
            state=states[init_state_id],
            task_id=task_id,
            init_state_id=init_state_id,
            instruction=self.instructions[task_id],
            key=(task_id, init_state_id),
        )

    def _begin(self, slots: Sequence[int], options: Mapping[str, np.ndarray]) -> None:
        super()._begin(slots, options)
        if self._own_goal is not None and not self._goal_tried:
            try:
                self._own_goal.check(self.privileged(slots[0]))
            except BaseException:
                self._forget(slots)
                raise
            self._goal_tried = True

    def _advance(self, slots: Sequence[int], actions: Any, num_steps: np.ndarray) -> tuple[StepResult, np.ndarray]:
        if self._own_goal is None:
            return super()._advance(slots, actions, num_steps)
        return self._own_goal.play(self._engine, self.privileged, slots, actions, num_steps, film=self._filmed(slots))

    def privileged(self, slot: int = 0) -> PrivilegedView:
        """A slot as it is now: poses, joints, sizes and the goal, which a policy must not see.

        Raises:
            ValueError: There is no such slot.
            NotResetError: It was never reset, or the env is closed.
        """
        check_integer("slot", slot, least=0)
        if slot >= self.num_envs:
            raise ValueError(f"slot must be in 0..{self.num_envs - 1}, got {slot}")
        with self._busy:
            self._check_open()
            self._check_begun("privileged", [slot])
            start = self._starts[slot]
            assert start is not None
            assert isinstance(start.scene, LiberoEngineScene)
            return PrivilegedView(start.scene.geometry, self._engine.get_state(slot), init_state_id=start.init_state_id)

    def make_expert(self, slot: int = 0, *, noise: float = 0.0, seed: int | None = None) -> Expert:
        """A scripted expert for the episode that the slot is in; see `Expert`.

        Raises:
            UnsupportedTaskError: It cannot do the slot's task, or plays other actions than the env; the message says why.
            ValueError: There is no such slot, or `noise` is not in 0..1.
            NotResetError: The slot was never reset, or the env is closed.
        """
        if self.control != "osc_delta":
            raise UnsupportedTaskError(self._experts_control)
        return Expert(partial(self.privileged, slot), noise=noise, seed=seed)

    def expert_declines(self, slot: int = 0) -> str:
        """Why the scripted expert cannot do the task of the episode that the slot is in; "" if it can. Takes about 0.1 s.

        Raises:
            ValueError: There is no such slot.
            NotResetError: The slot was never reset, or the env is closed.
        """
        view = self.privileged(slot)
        return why_declined(view) if self.control == "osc_delta" else self._experts_control

    @property
    def _experts_control(self) -> str:
        return f"the expert plays actions of control='osc_delta', and this env has control={self.control!r}"

    def close_extras(self) -> None:
        super().close_extras()
        self._scenes.clear()
        if self._randomized:
            self._randomized.clear()


make_libero_env = maker_of_single(LiberoEnv)
