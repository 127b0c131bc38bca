"""Loads scenes from a folder of exported scenes or from the cache on disk, and compiles what the cache lacks.

Invariant: two processes that want the same scene compile it once and never see half of it. A damaged or outdated file in the
cache is compiled again; in a user's own folder it is an error.
"""

import fcntl
import hashlib
import json
import logging
import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path

import mujoco

from vla_envs.errors import SceneFormatError
from vla_envs.libero.bundle import FORMAT, load_bundle, save_bundle
from vla_envs.libero.scene import Scene
from vla_envs.libero.suites import INDEX_FILE, SuiteTask, libero_version, suite_tasks
from vla_envs.vector.mujoco_warnings import log_mujoco_warnings

logger = logging.getLogger(__name__)


def load_scene(suite: str, task_id: int, *, detail: str = "full", scene_dir: Path | None = None) -> Scene:
    """One compiled task.

    Args:
        suite: Name of the suite.
        task_id: Task within it.
        detail: "full" or "fast".
        scene_dir: Folder of exported scenes; None: use the cache, and compile what it lacks.

    Raises:
        SceneFormatError: A file in `scene_dir` is missing, damaged, or of another version.
        MissingDependencyError: The scene must be compiled, and LIBERO is not installed or lacks its files.
    """
    log_mujoco_warnings()
    if scene_dir is not None:
        return load_bundle(exported_file(suite, task_id, detail=detail, scene_dir=scene_dir))
    libero, origin = libero_version(), _origin(detail)
    versions = re.sub(r"[^\w.]+", "-", f"{libero} mujoco {mujoco.__version__} format {FORMAT}")
    file = cache_folder() / versions / _file_name(suite, task_id, detail)
    with suppress(SceneFormatError):
        return load_bundle(file, origin=origin)
    with _locked(file):
        if file.exists():
            try:
                return load_bundle(file, origin=origin)  # made while this process waited
            except SceneFormatError as error:
                logger.warning("%s; compiling it again", error)
        from vla_envs.libero.compile import compile_scene

        logger.warning("compiling %s task %d (%s detail) into %s: this takes some seconds, once", suite, task_id, detail, file)
        scene = compile_scene(suite, task_id, detail=detail)
        try:
            save_bundle(scene, file, origin=origin, portable=False)
        except OSError as error:
            logger.warning("%s could not be written (%s): it will be compiled again next time", file, error.strerror or error)
        return scene


def cache_folder() -> Path:
    """`$VLA_ENVS_CACHE`, else `vla_envs` in `$XDG_CACHE_HOME`, else in `~/.cache`."""
    own = os.environ.get("VLA_ENVS_CACHE")
    if own:
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vla_envs"


def export_scenes(
    suite: str,
    task_ids: Sequence[int],
    *,
    detail: str,
    folder: Path,
    fixture_seed: int = 0,
    on_task: Callable[[int, Path], None] | None = None,
) -> None:
    """Write scenes into a folder that `scene_dir=` takes on any machine; other scenes in it stay.

    Several processes may export into the same folder.

    Args:
        suite: Name of the suite.
        task_ids: Tasks within it.
        detail: "full" or "fast".
        folder: Created if missing.
        fixture_seed: Fixtures stand where LIBERO's `seed(fixture_seed)` and `reset()` put them. The cache holds only seed 0.
        on_task: Called with each finished task and its file.
    """
    tasks = suite_tasks(suite)
    for task_id in task_ids:
        if task_id not in tasks:
            raise ValueError(f"{suite} has tasks 0..{len(tasks) - 1}, got {task_id}")
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file, not a folder")
    folder.mkdir(parents=True, exist_ok=True)
    for task_id in task_ids:
        file = folder / _file_name(suite, task_id, detail)
        if fixture_seed == 0:
            scene = load_scene(suite, task_id, detail=detail)
        else:
            from vla_envs.libero.compile import compile_scene

            scene = compile_scene(suite, task_id, detail=detail, fixture_seed=fixture_seed)
        save_bundle(scene, file, origin=_origin(detail), portable=True)
        _add_to_index(folder / INDEX_FILE, suite, task_id, tasks[task_id])
        if on_task is not None:
            on_task(task_id, file)


def exported_file(suite: str, task_id: int, *, detail: str, scene_dir: Path) -> Path:
    """Path of an exported scene.

    Raises:
        SceneFormatError: It was not exported.
    """
    file = scene_dir / _file_name(suite, task_id, detail)
    if not file.exists():
        raise SceneFormatError(f"{file} is missing: export it with python -m vla_envs.libero compile --detail {detail}")
    return file


def _add_to_index(file: Path, suite: str, task_id: int, task: SuiteTask) -> None:
    with _locked(file):
        index = json.loads(file.read_text()) if file.exists() else {"suites": {}}
        index["suites"].setdefault(suite, {})[str(task_id)] = asdict(task)
        new_file = file.with_name(f".{file.name}.{os.getpid()}")
        new_file.write_text(json.dumps(index, indent=1) + "\n")
        os.replace(new_file, file)


def _origin(detail: str) -> str:
    """What a scene is made from: the installed LIBERO, and the code that compiles it."""
    makers = ("compile.py", "goals.py", "scene.py", "suites.py", *(("detail.py",) if detail == "fast" else ()))
    code = b"".join(Path(__file__).with_name(maker).read_bytes() for maker in makers)
    return f"{libero_version()}, code {hashlib.sha256(code).hexdigest()[:8]}"


def _file_name(suite: str, task_id: int, detail: str) -> str:
    return f"{suite}_{task_id:02d}_{detail}.scene"


@contextmanager
def _locked(file: Path) -> Iterator[None]:
    """Lock a file against other processes and threads. In a folder that cannot be written there is nothing to protect, and
    file systems that cannot lock are trusted: files are replaced whole."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        lock = file.with_suffix(".lock").open("w")
    except OSError:
        yield
        return
    with lock:
        with suppress(OSError):
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield
