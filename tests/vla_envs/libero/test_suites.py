"""Suites and tasks, from the installed LIBERO and from a folder of exported scenes."""

import json
import sys
from pathlib import Path

import pytest

from vla_envs.errors import MissingDependencyError, SceneFormatError
from vla_envs.libero import suites
from vla_envs.libero.suites import INDEX_FILE, initial_states, suite_tasks

TASK = {"name": "turn_the_knob", "instruction": "turn the knob", "max_episode_steps": 50, "num_init_states": 4}


@pytest.mark.parametrize(
    ("suite", "num_tasks", "max_episode_steps"),
    [
        ("libero_spatial", 10, 220),
        ("libero_object", 10, 280),
        ("libero_goal", 10, 300),
        ("libero_10", 10, 520),
        ("libero_90", 90, 400),
    ],
)
def test_the_five_suites_have_their_tasks_and_time_limits(suite: str, num_tasks: int, max_episode_steps: int):
    tasks = suite_tasks(suite)
    assert list(tasks) == list(range(num_tasks))
    assert {task.max_episode_steps for task in tasks.values()} == {max_episode_steps}
    assert {task.num_init_states for task in tasks.values()} == {50}
    assert len({task.name for task in tasks.values()}) == num_tasks


def test_an_instruction_is_plain_words():
    assert suite_tasks("libero_goal")[7].instruction == "turn on the stove"


def test_initial_states_are_time_positions_and_velocities():
    states = initial_states("libero_goal", 0)
    assert states.shape == (50, 1 + 41 + 37)
    assert (states[:, 0] == states[0, 0]).all()


def test_a_perturbed_suite_has_its_own_instructions_and_the_time_limit_of_the_suite_it_varies():
    if "libero_goal_lan" not in suites._import_benchmark().get_benchmark_dict():
        pytest.skip("the installed LIBERO is not LIBERO-PRO")
    original, varied = suite_tasks("libero_goal")[0], suite_tasks("libero_goal_lan")[0]
    assert varied.max_episode_steps == original.max_episode_steps
    assert varied.instruction != original.instruction


def test_an_unknown_suite_is_an_error_that_names_those_there_are():
    with pytest.raises(ValueError, match=r"unknown suite 'libero_11': LIBERO has libero_spatial, .*libero_90"):
        suite_tasks("libero_11")


def test_a_suite_that_is_listed_without_its_files_is_an_error_that_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    suites._installed_tasks.cache_clear()
    benchmark = suites.benchmark_suite("libero_goal")
    monkeypatch.setattr(benchmark, "get_task_init_states", lambda task_id: (tmp_path / "goal.pruned_init").read_bytes())
    with pytest.raises(
        MissingDependencyError, match=r"lists suite 'libero_goal' but does not hold its files .*goal\.pruned_init"
    ):
        suite_tasks("libero_goal")
    monkeypatch.undo()
    assert len(suite_tasks("libero_goal")) == 10  # the failure is not remembered


def test_without_libero_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch):
    suites.benchmark_suite.cache_clear()
    suites._installed_tasks.cache_clear()
    for name in [name for name in sys.modules if name.partition(".")[0] == "libero"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "libero", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'vla-envs\[libero\]'.*scene_dir="):
        suite_tasks("libero_spatial")


def test_importing_libero_does_not_wait_for_an_answer():
    with suites._no_to_questions():
        assert input() == "n"


def exported(folder: Path, content: str) -> Path:
    (folder / INDEX_FILE).write_text(content)
    return folder


def test_a_folder_of_exported_scenes_names_its_tasks(tmp_path: Path):
    folder = exported(tmp_path, json.dumps({"suites": {"mine": {"3": TASK}}}))
    tasks = suite_tasks("mine", scene_dir=folder)
    assert list(tasks) == [3]
    assert tasks[3].instruction == "turn the knob"
    with pytest.raises(ValueError, match="holds no suite 'libero_10', only mine"):
        suite_tasks("libero_10", scene_dir=folder)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"suites": []}', '{"suites": {"mine": {"x": {}}}}'])
def test_a_damaged_index_is_refused(tmp_path: Path, content: str):
    with pytest.raises(SceneFormatError, match=r"suite\.json cannot be read"):
        suite_tasks("mine", scene_dir=exported(tmp_path, content))


def test_any_other_folder_is_refused(tmp_path: Path):
    with pytest.raises(SceneFormatError, match=r"is not a folder of exported scenes .*make one with"):
        suite_tasks("mine", scene_dir=tmp_path)


def test_a_suite_that_libero_lists_without_tasks_is_refused():
    with pytest.raises(ValueError, match="lists suite 'libero_100' without any tasks: choose another"):
        suite_tasks("libero_100")


@pytest.mark.parametrize(
    ("configuration", "match"),
    [
        ("bddl_files: /old/bddl\n", r"looks for its bddl_files in /old/bddl, where there is no folder\. .*config.yaml says so"),
        ("assets: /old/assets\n", r"looks for its assets in /old/assets, where there is no folder\. .*config.yaml says so"),
        ("[1", r"configuration file .*config.yaml cannot be read .*: delete it"),
    ],
)
def test_a_configuration_of_libero_that_has_outlived_its_installation_is_named(
    configuration: str, match: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "config.yaml").write_text(configuration)
    monkeypatch.setenv("LIBERO_CONFIG_PATH", str(tmp_path))
    suites.benchmark_suite.cache_clear()
    suites._installed_tasks.cache_clear()
    with pytest.raises(MissingDependencyError, match=match):
        suite_tasks("libero_spatial")
