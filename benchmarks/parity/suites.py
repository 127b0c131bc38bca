"""Which of the further suites that LIBERO lists play here (LIBERO-PRO's): the table of docs/environments.md.

    python -m benchmarks.parity.suites                  # some minutes

A task plays if it compiles, its initial states fit, and two control steps can be played from the first of them.
"""

from collections import defaultdict
from collections.abc import Iterator

import numpy as np

from vla_envs.errors import MissingDependencyError
from vla_envs.libero.compile import compile_scene
from vla_envs.libero.engine_scene import LiberoEngineScene
from vla_envs.libero.suites import TIME_LIMITS, libero_version, listed_suites, suite_tasks


def main() -> None:
    """Play every task of every suite, and print the table."""
    suites = [suite for suite in listed_suites() if suite not in TIME_LIMITS]
    rows: dict[str, list[str]] = defaultdict(list)
    for suite in suites:
        row, note = outcome(suite)
        rows[row].append(f"`{suite}`{note}")
    print(f"{libero_version()}: {len(suites)} suites besides {', '.join(TIME_LIMITS)}")
    print("\n| | suites |\n|---|---|")
    for row, names in rows.items():
        print(f"| {row}: {len(names)} | {', '.join(names)} |")


def outcome(suite: str) -> tuple[str, str]:
    """The row of the table, and what is to be said of the suite there."""
    try:
        tasks = suite_tasks(suite)
    except MissingDependencyError:
        return "files of its tasks are missing", ""
    failed = {task_id: error for task_id in tasks for error in problems(suite, task_id)}
    if not failed:
        return "every task plays", ""
    if len(failed) == len(tasks) and all(isinstance(error, MissingDependencyError) for error in failed.values()):
        return "an object is missing in every task", ""
    files = any(isinstance(error, MissingDependencyError) for error in failed.values())
    reason = "an object is missing" if files else str(next(iter(failed.values())))
    return "some tasks play", f" (not {', '.join(map(str, failed))}: {reason})"


def problems(suite: str, task_id: int) -> Iterator[Exception]:
    """What keeps a task from being played, if anything does."""
    try:
        scene = compile_scene(suite, task_id, detail="full")
    except (MissingDependencyError, ValueError) as error:
        yield error
        return
    expected = 1 + scene.model.nq + scene.model.nv
    if scene.init_states.shape[1] != expected:
        yield ValueError(f"its initial states have {scene.init_states.shape[1]} numbers, its model {expected}")
        return
    player = LiberoEngineScene(scene).new_player()
    player.begin(scene.init_states[0])
    if player.play(np.zeros((2, 7)), 2) < 2:
        yield ValueError(player.fault())


if __name__ == "__main__":
    main()
