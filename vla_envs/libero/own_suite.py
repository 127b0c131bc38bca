"""BDDL files of a user's as a suite beside LIBERO's own, so that all that plays, compiles or exports a suite takes them.

The suite stands in LIBERO's registry under a name made from what the files say: equal files are the same suite in any process,
and their scenes are found in the cache. What LIBERO would stumble over is looked for before it builds a scene, so that an error
says what is wrong in which file. A file has no stored initial states; its scene holds one, that of LIBERO's first reset, from
which `initial_states.py` draws others.
"""

import atexit
import hashlib
import re
import tempfile
from collections.abc import Mapping
from functools import lru_cache
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from vla_envs.errors import MissingDependencyError
from vla_envs.libero.initial_states import InitialStates
from vla_envs.libero.recent_scenes import RecentScenes
from vla_envs.libero.scene import Scene
from vla_envs.libero.suites import ONE_AT_A_TIME, SuiteTask, listed_suites, quiet

NUM_DRAWN = 50
"""Initial states that a file has if none are given: as many as LIBERO stores of its own tasks."""

_ARENAS = ("table", "floor", "kitchen_table", "coffee_table", "living_room_table", "study_table")
"""Kinds of fixtures that belong to LIBERO's arenas, and are no objects."""
_PREDICATES: Mapping[str, int] = {"on": 2, "in": 2, "open": 1, "close": 1, "turnon": 1, "turnoff": 1, "up": 1}
"""Those that a goal may have, and how many names each takes."""


class OwnTask(NamedTuple):
    """A task as LIBERO's benchmarks list theirs."""

    name: str
    language: str


class OwnSuite:
    """What LIBERO's benchmarks do, for files of a user's; a subclass has the files."""

    files: tuple[Path, ...] = ()
    texts: tuple[str, ...] = ()
    """What the files said when they became this suite; they may say something else by now."""
    num_init_states = 1
    """Of each."""

    def __init__(self) -> None:
        pairs = zip(self.files, self.texts, strict=True)
        self.tasks = [OwnTask(name=file.stem, language=_instruction(file, text)) for file, text in pairs]
        self._first_states: dict[int, np.ndarray] = {}

    def get_task_bddl_file_path(self, task_id: int) -> str:
        """A copy of the file as it was, with nothing in it that LIBERO would stumble over.

        Raises:
            ValueError: It is no problem that LIBERO can build.
        """
        file = self.files[task_id]
        copy = _copies() / type(self).__name__ / str(task_id) / file.name
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_text(self.texts[task_id])
        check_problem(copy, file)
        return str(copy)

    def get_task_init_states(self, task_id: int) -> np.ndarray:
        """(1, 1 + nq + nv): [time, qpos, qvel] after LIBERO's first reset."""
        if task_id not in self._first_states:
            from vla_envs.libero.compile import build_libero

            with ONE_AT_A_TIME:
                env = build_libero(type(self).__name__, task_id)
            self._first_states[task_id] = env.sim.get_state().flatten()[None]
            env.close()
        return self._first_states[task_id]


def own_suite(files: Any) -> tuple[str, tuple[Path, ...]]:
    """Register files as a suite with LIBERO, whose tasks are in the files' order; returns its name, and their paths.

    Args:
        files: The path of a BDDL file, or several.

    Raises:
        ValueError: One is missing, or is no text that defines a problem.
        MissingDependencyError: LIBERO is not installed.
    """
    paths = tuple(Path(file).resolve() for file in _listed(files))
    texts = tuple(map(_text, paths))
    digest = hashlib.sha256(b"\0".join(text.encode() for text in texts)).hexdigest()
    name = f"own_{digest[:12]}"
    listed_suites()  # LIBERO is there, or an error says that it is not
    if name not in _REGISTERED:
        from libero.libero import benchmark

        _REGISTERED[name] = type(name, (OwnSuite,), {"texts": texts})
        benchmark.register_benchmark(_REGISTERED[name])
    _REGISTERED[name].files = paths  # other files may say the same: errors name the present ones
    return name, paths


_REGISTERED: dict[str, type[OwnSuite]] = {}
"""By name."""


@lru_cache(maxsize=1)
def _copies() -> Path:
    """A folder of this process."""
    folder = tempfile.TemporaryDirectory(prefix="vla_envs_")
    atexit.register(folder.cleanup)
    return Path(folder.name)


def own_scene(scenes: RecentScenes, task_id: int, file: Path) -> Scene:
    """The scene of one of the files, compiled where the cache lacks it.

    Raises:
        ValueError: LIBERO cannot build it; the message names the file.
        MissingDependencyError: LIBERO lacks an object's files, or robosuite is not installed.
    """
    try:
        return scenes[task_id].scene
    except MissingDependencyError:
        raise
    except Exception as error:  # whatever LIBERO raises while it builds
        if isinstance(error, ValueError) and str(file) in str(error):
            raise
        raise ValueError(f"{file}: LIBERO cannot build it: {error!r}") from error


def scene_task(scene: Scene) -> SuiteTask:
    """What suites say of a task, from its scene."""
    return SuiteTask(
        name=scene.name,
        instruction=scene.instruction,
        max_episode_steps=scene.max_episode_steps,
        num_init_states=len(scene.init_states),
    )


def drawn_states(scene: Scene, file: Path) -> np.ndarray:
    """(`NUM_DRAWN`, 1 + nq + nv): initial states drawn from the regions of the file, always the same ones.

    Raises:
        ValueError: The regions leave no room for the objects.
    """
    initial_states = InitialStates(scene)
    try:
        return np.array([initial_states.numbered(number) for number in range(NUM_DRAWN)])
    except RuntimeError as error:
        raise ValueError(f"{file}: {error}; make its regions larger, or give init_states") from error


def check_problem(copy: Path, file: Path) -> None:
    """Look for what LIBERO would stumble over: kinds of objects, predicates and names that it does not know.

    Args:
        copy: To be read.
        file: Its name for the user.

    Raises:
        ValueError: Says what is wrong in the file, and what is accepted.
    """
    with quiet():
        from libero.libero.envs import TASK_MAPPING
        from libero.libero.envs.bddl_utils import robosuite_parse_problem
        from libero.libero.envs.objects import get_object_dict

        try:
            problem = robosuite_parse_problem(str(copy))
        except Exception as error:  # whatever comes of a text that it does not understand
            raise ValueError(f"{file} cannot be read as BDDL: {error!r}") from error
    if problem["problem_name"] not in TASK_MAPPING:
        raise ValueError(f"{file}: problem {problem['problem_name']!r} is none of {', '.join(sorted(TASK_MAPPING))}")
    known = get_object_dict()
    for part in ("fixtures", "objects"):
        for kind, names in problem[part].items():
            if kind not in known and not (part == "fixtures" and kind in _ARENAS):
                raise ValueError(f"{file}: {', '.join(names)}: LIBERO has no {part} of kind {kind!r}")
    things = {name for part in ("fixtures", "objects") for names in problem[part].values() for name in names}
    objects = {name for names in problem["objects"].values() for name in names}
    for condition in problem["initial_state"] + problem["goal_state"]:
        if not all(isinstance(word, str) for word in condition):
            raise ValueError(f"{file}: a goal is one predicate, or (And ...) of several; Not, Or and the like are not known")
        for name in condition[1:]:
            if name not in things and name not in problem["regions"]:
                raise ValueError(f"{file}: ({' '.join(condition)}): there is no object, fixture or region {name!r}")
    if not problem["goal_state"]:
        raise ValueError(f"{file} has no goal")
    for condition in problem["goal_state"]:
        if _PREDICATES.get(condition[0].lower()) != len(condition) - 1:
            raise ValueError(
                f"{file}: goal ({' '.join(condition)}): predicates are {', '.join(_PREDICATES)}; on and in take two names, "
                "the others one"
            )
        if condition[0].lower() == "up" and condition[1] not in objects:
            raise ValueError(f"{file}: goal ({' '.join(condition)}): only an object can be up")
    if unplaced := sorted(objects - {condition[1] for condition in problem["initial_state"]}):
        raise ValueError(f"{file}: {', '.join(unplaced)} would lie nowhere: (:init ...) does not say where")


def _listed(files: Any) -> list[Any]:
    listed = [files] if isinstance(files, str | PathLike) else list(files) if isinstance(files, list | tuple) else []
    if not listed or not all(isinstance(file, str | PathLike) for file in listed):
        raise ValueError(f"bddl_file must be the path of a BDDL file, or a list of them, got {files!r}")
    return listed


def _text(file: Path) -> str:
    try:
        text = file.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"bddl_file {file} cannot be read: {getattr(error, 'strerror', None) or error}") from error
    if not re.search(r"\(define\s*\(problem\s", text):
        raise ValueError(f"bddl_file {file} is not BDDL: it does not begin with (define (problem NAME)")
    return text


def _instruction(file: Path, text: str) -> str:
    found = re.search(r"\(:language\s+([^)]*)\)", text)
    return found[1].strip().lower() if found else file.stem.replace("_", " ")
