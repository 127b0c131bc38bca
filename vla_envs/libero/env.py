"""The LIBERO benchmark as a vector env: each slot plays its own task, from the benchmark's stored initial states."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium.vector import AutoresetMode

from vla_envs.libero.arguments import check_arguments, choose_tasks, task_span
from vla_envs.libero.cache import exported_file
from vla_envs.libero.recent_scenes import RecentScenes
from vla_envs.libero.suites import suite_tasks
from vla_envs.vector.base import ChunkedVectorEnv
from vla_envs.vector.gl_context import Device
from vla_envs.vector.mujoco_engine import MujocoEngine
from vla_envs.vector.single_env import SingleEnv
from vla_envs.vector.start import Start


class LiberoEnv(ChunkedVectorEnv):
    """Tasks of one LIBERO suite in N slots.

    Without options, slot i plays entries i, i + N, i + 2N, ... of `task_ids` (cyclically), each time from an initial state
    drawn from its own seeded stream. `reset` takes the options `task_id` and `init_state_id`.

    Args:
        num_envs: N.
        suite: Any suite that the installed LIBERO knows, or that `scene_dir` holds.
        task_ids: The tasks that may be played, in their order; one that is listed twice has two turns. None: all of the suite.
            The attribute of this name lists each task once.
        task_id: Short for `task_ids` of one task.
        chunk_size: K: `step` takes (N, K, 7) and plays up to K actions; None: it takes (N, 7).
        image_size: Height and width of the pictures in pixels.
        cameras: Any of "agentview" (observed as `image`) and "wrist" (`wrist_image`); none draws nothing.
        detail: "full" draws what LIBERO draws, "fast" simplified meshes and smaller textures.
        device: "cuda" draws on the GPU, or in software with a warning where there is none; "cpu" draws in software; "auto" on
            what there is. The attribute `renderer`, the info of `reset` and the log say what draws.
        max_episode_steps: Time limit in control steps; None: the suite's own.
        autoreset_mode: See `ChunkedVectorEnv`.
        settle_steps: Control steps without motion at the start of each episode, not counted.
        scene_dir: Folder of exported scenes; then LIBERO need not be installed.
        num_threads: Threads that step physics; None: one per core that this process may use.
        render_mode: "rgb_array" or None.
    """

    def __init__(
        self,
        num_envs: int = 1,
        *,
        suite: str = "libero_spatial",
        task_ids: Sequence[int] | None = None,
        task_id: int | None = None,
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
        self.suite = suite
        folder = None if scene_dir is None else Path(scene_dir)
        tasks = suite_tasks(suite, scene_dir=folder)
        chosen = choose_tasks(suite, tasks, task_ids=task_ids, task_id=task_id)
        if folder is not None:
            for chosen_id in chosen:
                exported_file(suite, chosen_id, detail=detail, scene_dir=folder)
        super().__init__(
            num_envs,
            engine=MujocoEngine(num_envs, device=device if cameras else None, num_threads=num_threads),
            instructions={chosen_id: tasks[chosen_id].instruction for chosen_id in chosen},
            max_episode_steps=max_episode_steps or tasks[chosen[0]].max_episode_steps,
            chunk_size=chunk_size,
            image_size=image_size,
            cameras=cameras,
            autoreset_mode=autoreset_mode,
            settle_steps=settle_steps,
            render_mode=render_mode,
        )
        self.num_init_states = {chosen_id: tasks[chosen_id].num_init_states for chosen_id in chosen}
        self._turns = chosen
        self._scenes = RecentScenes(suite, detail, folder)

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
        self._scenes.load({self._task_of(slot, int(episodes[slot]), options) for slot in slots})

    def _task_of(self, slot: int, episode: int, options: Mapping[str, np.ndarray]) -> int:
        if "task_id" in options:
            return int(options["task_id"][slot])
        return self._turns[(slot + episode * self.num_envs) % len(self._turns)]

    def _next_start(self, slot: int, rng: np.random.Generator, episode: int, options: Mapping[str, np.ndarray]) -> Start:
        task_id = self._task_of(slot, episode, options)
        drawn = int(rng.integers(self.num_init_states[task_id]))
        init_state_id = int(options["init_state_id"][slot]) if "init_state_id" in options else drawn
        scene = self._scenes[task_id]
        return Start(
            scene=scene,
            state=scene.scene.init_states[init_state_id],
            task_id=task_id,
            init_state_id=init_state_id,
            instruction=self.instructions[task_id],
            cache_key=(task_id, init_state_id),
        )

    def close_extras(self) -> None:
        super().close_extras()
        self._scenes.clear()


def make_libero_env(*, time_limit: int | None = None, **kwargs: Any) -> SingleEnv:
    """One LIBERO env for `gymnasium.make`; takes `LiberoEnv`'s arguments, with `time_limit` for `max_episode_steps`.

    Args:
        time_limit: In control steps; None: the suite's own. `gymnasium.make` keeps an argument called `max_episode_steps` to
            itself, and counts calls of `step` with it (chunks, if there is a `chunk_size`); this limit holds as well.
        kwargs: See `LiberoEnv`.
    """
    return SingleEnv(LiberoEnv(1, autoreset_mode=AutoresetMode.DISABLED, max_episode_steps=time_limit, **kwargs))
