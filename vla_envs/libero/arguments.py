"""What users make envs of LIBERO's tasks with, checked before anything is loaded or started."""

from collections.abc import Collection, Iterable, Sequence
from typing import Any

import numpy as np
from gymnasium.vector import AutoresetMode

CAMERAS = ("agentview", "wrist")


def check_arguments(
    *,
    num_envs: int,
    chunk_size: int | None,
    image_size: int,
    cameras: Sequence[str],
    detail: str,
    device: str,
    max_episode_steps: int | None,
    autoreset_mode: AutoresetMode | str,
    settle_steps: int,
    num_threads: int | None,
    render_mode: str | None,
) -> None:
    """Raise `ValueError` for what cannot work."""
    _check_integer("num_envs", num_envs, least=1)
    _check_integer("image_size", image_size, least=8)
    _check_integer("settle_steps", settle_steps, least=0)
    optional = {"chunk_size": chunk_size, "time limit (max_episode_steps)": max_episode_steps, "num_threads": num_threads}
    for name, value in optional.items():
        if value is not None:
            _check_integer(name, value, least=1)
    known = isinstance(cameras, list | tuple) and all(name in CAMERAS for name in cameras)
    if not known or len(set(cameras)) != len(cameras):
        raise ValueError(f"cameras must be any of {CAMERAS}, each once, or () for none, got {cameras!r}")
    _check_choice("detail", detail, ("full", "fast"))
    _check_choice("device", device, ("auto", "cuda", "cpu"))
    if not isinstance(autoreset_mode, AutoresetMode):
        _check_choice("autoreset_mode", autoreset_mode, tuple(mode.value for mode in AutoresetMode))
    _check_choice("render_mode", render_mode, (None, "rgb_array"))


def check_task(suite: str, tasks: Collection[int], task_id: int) -> int:
    """One task of a suite.

    Raises:
        ValueError: There is no such task.
    """
    if not _is_integer(task_id) or task_id not in tasks:
        raise ValueError(f"{suite} has tasks {task_span(tasks)}, got task_id={task_id!r}")
    return int(task_id)


def choose_tasks(
    suite: str, tasks: Collection[int], *, task_ids: Iterable[int] | None = None, task_id: int | None = None
) -> tuple[int, ...]:
    """The tasks of a suite that may be played: those of `task_ids`, the one of `task_id`, or all.

    Raises:
        ValueError: There is no such task, or both are given.
    """
    if task_id is not None:
        if task_ids is not None:
            raise ValueError(f"give task_ids or task_id, not both: got {task_ids!r} and {task_id!r}")
        return (check_task(suite, tasks, task_id),)
    if task_ids is None:
        return tuple(sorted(tasks))
    chosen = tuple(task_ids) if isinstance(task_ids, Iterable) else ()
    if not chosen or not all(_is_integer(chosen_id) and chosen_id in tasks for chosen_id in chosen):
        raise ValueError(f"task_ids must be a list of tasks of {suite}, which has {task_span(tasks)}, got {task_ids!r}")
    return tuple(int(chosen_id) for chosen_id in chosen)


def task_span(task_ids: Collection[int]) -> str:
    """Task ids in few characters."""
    ordered = sorted(task_ids)
    if ordered == list(range(len(ordered))):
        return f"0..{len(ordered) - 1}"
    return ", ".join(map(str, ordered))


def _is_integer(value: Any) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def _check_integer(name: str, value: Any, *, least: int) -> None:
    if not _is_integer(value) or value < least:
        raise ValueError(f"{name} must be an integer of at least {least}, got {value!r}")


def _check_choice(name: str, value: Any, choices: tuple[str | None, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}, got {value!r}")
