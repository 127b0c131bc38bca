"""Which tasks of a suite an env is to play: checked before anything is loaded or started."""

from collections.abc import Collection, Iterable

from vla_envs.vector.options import is_integer


def check_task(suite: str, tasks: Collection[int], task_id: int) -> int:
    """One task of a suite.

    Raises:
        ValueError: There is no such task.
    """
    if not is_integer(task_id) or task_id not in tasks:
        raise ValueError(f"{suite} has tasks {task_span(tasks)}, got task_id={task_id!r}")
    return int(task_id)


def choose_tasks(
    suite: str, tasks: Collection[int], *, task_ids: Iterable[int] | None = None, task_id: int | None = None
) -> tuple[int, ...]:
    """The tasks that may be played, in the order of their turns: those of `task_ids`, the one of `task_id`, or all.

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
    if not chosen or not all(is_integer(chosen_id) and chosen_id in tasks for chosen_id in chosen):
        raise ValueError(f"task_ids must be a list of tasks of {suite}, which has {task_span(tasks)}, got {task_ids!r}")
    return tuple(int(chosen_id) for chosen_id in chosen)


def task_span(task_ids: Collection[int]) -> str:
    """Task ids in few characters."""
    ordered = sorted(task_ids)
    if ordered == list(range(len(ordered))):
        return f"0..{len(ordered) - 1}"
    return ", ".join(map(str, ordered))
