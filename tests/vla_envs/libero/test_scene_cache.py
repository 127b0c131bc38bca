"""The cache and exported folders, with real scenes: compiled once, repaired where LIBERO is there, portable without it."""

import errno
import fcntl
import json
import logging
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vla_envs.errors import SceneFormatError
from vla_envs.libero import cache as cache_module
from vla_envs.libero import compile as compile_module
from vla_envs.libero.cache import export_scenes, load_scene
from vla_envs.libero.env import LiberoEnv
from vla_envs.libero.scene import Scene
from vla_envs.libero.suites import suite_tasks

SUITE, TASK = "libero_goal", 0
LOAD = f"""
import logging
logging.basicConfig(level=logging.INFO)
from vla_envs.libero.cache import load_scene
print(load_scene({SUITE!r}, {TASK}).instruction)
"""
WITHOUT_LIBERO = """
import sys

class Nothing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("libero", "robosuite"):
            raise ImportError(f"{name} is not installed")

sys.meta_path.insert(0, Nothing())
"""
PLAY = """
import gymnasium, numpy
envs = gymnasium.make_vec("Libero-v0", num_envs=2, suite="libero_goal", task_ids=[0], scene_dir=sys.argv[1], cameras=())
observations, _ = envs.reset(seed=0)
_, rewards, *_ = envs.step(numpy.zeros((2, 7), numpy.float32))
print(observations["instruction"], rewards, [name for name in sys.modules if name in ("libero", "robosuite")])
"""


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache that two processes have filled at the same time."""
    folder = tmp_path_factory.mktemp("cache")
    environment = os.environ | {"VLA_ENVS_CACHE": str(folder)}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", LOAD], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for _ in range(2)
    ]
    outputs = [process.communicate(timeout=120) for process in processes]
    (folder / "log").write_text("".join(output + errors for output, errors in outputs))
    return folder


@pytest.fixture
def in_cache(cache: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The cache, in use."""
    monkeypatch.setenv("VLA_ENVS_CACHE", str(cache))
    return cache


@pytest.fixture
def compilations(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Task ids that are compiled from here on."""
    compiled: list[int] = []
    really = compile_module.compile_scene

    def counted(suite: str, task_id: int, *, detail: str) -> Scene:
        compiled.append(task_id)
        return really(suite, task_id, detail=detail)

    monkeypatch.setattr(compile_module, "compile_scene", counted)
    return compiled


def test_two_processes_that_want_the_same_scene_compile_it_once_and_both_get_it(cache: Path):
    log = (cache / "log").read_text()
    assert log.count("compiling libero_goal task 0") == 1
    assert log.count("open the middle drawer of the cabinet") == 2
    assert not list(cache.rglob(".*"))


def test_a_cached_scene_is_not_compiled_again(in_cache: Path, compilations: list[int]):
    scene = load_scene(SUITE, TASK)
    assert (scene.suite, scene.task_id, scene.detail) == (SUITE, TASK, "full")
    assert compilations == []


@pytest.mark.parametrize("kind", ["*.scene", "*.mjb"])
def test_a_damaged_cache_is_repaired_with_a_warning(
    in_cache: Path, compilations: list[int], caplog: pytest.LogCaptureFixture, kind: str
):
    file = next(in_cache.rglob(kind))
    file.write_bytes(file.read_bytes()[:1000])
    with caplog.at_level(logging.WARNING):
        load_scene(SUITE, TASK)
    assert compilations == [TASK]
    assert "damaged" in caplog.text
    assert "compiling it again" in caplog.text
    load_scene(SUITE, TASK)
    assert compilations == [TASK]


def test_a_scene_made_by_other_code_is_compiled_again(
    in_cache: Path, compilations: list[int], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    load_scene(SUITE, TASK)
    monkeypatch.setattr(cache_module, "_origin", lambda detail: "LIBERO, later code")
    with caplog.at_level(logging.WARNING):
        load_scene(SUITE, TASK)
    assert compilations == [TASK]
    assert "installed is LIBERO, later code; compiling it again" in caplog.text


def test_a_cache_that_cannot_be_written_costs_time_but_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("VLA_ENVS_CACHE", str(tmp_path / "file" / "cache"))
    with caplog.at_level(logging.WARNING):
        assert load_scene(SUITE, TASK).task_id == TASK
    assert "could not be written" in caplog.text


def test_a_file_system_that_cannot_lock_is_trusted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def no_locks(*_: object) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    monkeypatch.setenv("VLA_ENVS_CACHE", str(tmp_path))
    assert load_scene(SUITE, TASK).task_id == TASK
    assert list(tmp_path.rglob("*.scene"))


@pytest.fixture(scope="module")
def exported(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder exported by the command line."""
    folder = tmp_path_factory.mktemp("exported")
    arguments = ["compile", "--suite", SUITE, "--out", str(folder), "--task-ids", str(TASK)]
    environment = os.environ | {"VLA_ENVS_CACHE": str(cache)}
    result = subprocess.run(
        [sys.executable, "-m", "vla_envs.libero", *arguments], env=environment, capture_output=True, text=True, timeout=120
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("[1/1] task 0: ")
    return folder


def test_exported_scenes_play_where_neither_libero_nor_robosuite_is_installed(exported: Path, tmp_path: Path):
    result = subprocess.run(
        [sys.executable, "-c", WITHOUT_LIBERO + PLAY, str(exported)],
        env=os.environ | {"VLA_ENVS_CACHE": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == 0, result.stderr
    assert "open the middle drawer of the cabinet" in result.stdout
    assert result.stdout.strip().endswith("[]")
    assert not list(tmp_path.iterdir())


def test_an_exported_scene_is_the_compiled_one(exported: Path, in_cache: Path):
    mine, theirs = load_scene(SUITE, TASK, scene_dir=exported), load_scene(SUITE, TASK)
    np.testing.assert_array_equal(mine.init_states, theirs.init_states)
    np.testing.assert_array_equal(mine.model.tex_data, theirs.model.tex_data)
    assert mine.goal.predicates == theirs.goal.predicates


def test_a_users_own_folder_is_refused_rather_than_repaired(exported: Path, tmp_path: Path, compilations: list[int]):
    file = next(exported.glob("*.scene"))
    (tmp_path / file.name).write_bytes(file.read_bytes()[:100_000])
    with pytest.raises(SceneFormatError, match=r"libero_goal_00_full\.scene is damaged"):
        load_scene(SUITE, TASK, scene_dir=tmp_path)
    with pytest.raises(SceneFormatError, match=r"libero_goal_01_full\.scene is missing: export it"):
        load_scene(SUITE, 1, scene_dir=tmp_path)
    with pytest.raises(SceneFormatError, match=r"export it with .* --detail fast"):
        load_scene(SUITE, TASK, detail="fast", scene_dir=exported)
    assert compilations == []


def test_a_second_export_adds_to_the_folder(exported: Path, in_cache: Path, tmp_path: Path):
    index = json.loads((exported / "suite.json").read_text())
    index["suites"]["another"] = {}
    (tmp_path / "suite.json").write_text(json.dumps(index))
    export_scenes(SUITE, [TASK], detail="full", folder=tmp_path)
    assert set(json.loads((tmp_path / "suite.json").read_text())["suites"]) == {"another", SUITE}


def test_an_export_with_another_fixture_seed_moves_the_fixtures_and_leaves_the_cache_alone(in_cache: Path, tmp_path: Path):
    export_scenes(SUITE, [TASK], detail="full", folder=tmp_path, fixture_seed=1)
    moved, usual = load_scene(SUITE, TASK, scene_dir=tmp_path), load_scene(SUITE, TASK)
    assert (moved.fixture_seed, usual.fixture_seed) == (1, 0)
    names = {moved.model.body(body).name for body in np.flatnonzero((moved.model.body_pos != usual.model.body_pos).any(axis=1))}
    assert names == {"wooden_cabinet_1_main", "flat_stove_1_main", "wine_rack_1_main"}
    np.testing.assert_array_equal(moved.init_states, usual.init_states)


def test_exports_into_one_folder_at_the_same_time_all_get_into_its_list(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(cache_module, "load_scene", lambda *args, **kwargs: None)
    monkeypatch.setattr(cache_module, "save_bundle", lambda *args, **kwargs: None)
    write = json.dumps

    def write_slowly(*args: Any, **kwargs: Any) -> str:
        time.sleep(0.05)
        return write(*args, **kwargs)

    monkeypatch.setattr(json, "dumps", write_slowly)
    with ThreadPoolExecutor(4) as pool:
        exports = [pool.submit(export_scenes, SUITE, [task], detail="full", folder=tmp_path) for task in (3, 1, 0, 2)]
    for export in exports:
        export.result()
    assert set(suite_tasks(SUITE, scene_dir=tmp_path)) == {0, 1, 2, 3}
    assert {file.name for file in tmp_path.iterdir()} == {"suite.json", "suite.lock"}


def test_an_env_plays_exported_tasks_in_the_order_of_their_ids_whatever_the_order_of_export(exported: Path, tmp_path: Path):
    (scene,) = exported.glob("*.scene")
    index = json.loads((exported / "suite.json").read_text())
    task = index["suites"][SUITE]["0"]
    (tmp_path / "suite.json").write_text(json.dumps({"suites": {SUITE: {"2": task, "0": task, "1": task}}}))
    for task_id in range(3):
        (tmp_path / f"{SUITE}_{task_id:02d}_full.scene").symlink_to(scene)
    envs = LiberoEnv(1, suite=SUITE, scene_dir=tmp_path, cameras=())
    assert envs.task_ids == (0, 1, 2)
    envs.close()


def test_a_detail_that_was_not_exported_is_refused_when_the_env_is_made(exported: Path):
    with pytest.raises(SceneFormatError, match=r"libero_goal_00_fast\.scene is missing: export it with .* --detail fast"):
        LiberoEnv(1, suite=SUITE, scene_dir=exported, detail="fast", cameras=())


def test_compiling_is_announced_once(
    in_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    scene = load_scene(SUITE, TASK)
    monkeypatch.setenv("VLA_ENVS_CACHE", str(tmp_path))
    monkeypatch.setattr(compile_module, "compile_scene", lambda *args, **kwargs: scene)
    for _ in range(2):
        load_scene(SUITE, TASK)
    assert [record.levelname for record in caplog.records if "compiling libero_goal task 0" in record.message] == ["WARNING"]


def test_nothing_is_exported_if_any_task_is_unknown(tmp_path: Path):
    with pytest.raises(ValueError, match=r"libero_goal has tasks 0\.\.9, got 10"):
        export_scenes(SUITE, [TASK, 10], detail="full", folder=tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_the_command_line_says_what_is_wrong_without_a_traceback(tmp_path: Path):
    arguments = ["compile", "--suite", "libero_gaol", "--out", str(tmp_path)]
    result = subprocess.run([sys.executable, "-m", "vla_envs.libero", *arguments], capture_output=True, text=True, timeout=60)
    assert result.returncode == 2
    assert result.stderr.startswith("error: unknown suite 'libero_gaol': LIBERO has libero_spatial")
