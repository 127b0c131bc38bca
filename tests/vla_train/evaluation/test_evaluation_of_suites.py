"""`python -m vla_train eval --suites`: what names stand for, the table, going on, and what is refused at once."""

import json
import shutil
from collections import Counter
from pathlib import Path

import pytest
import suites_env

from vla_train.cli import main
from vla_train.command_line import parse_evaluate
from vla_train.evaluation.evaluate import read_episodes
from vla_train.evaluation.record import summaries
from vla_train.pipeline.episodes import evaluation_episodes
from vla_train.suite_names import PERTURBED, each_suite


@pytest.fixture
def command(small_checkpoint: Path, tmp_path: Path) -> list[str]:
    """Evaluates, on three episodes of a task, a checkpoint that was trained on libero_goal."""
    checkpoint = shutil.copytree(small_checkpoint, tmp_path / "published")
    config = json.loads((checkpoint / "config.json").read_text())
    config["norm_stats"] = {"libero_goal_no_noops": config["norm_stats"]["actions"]}
    config.pop("unnorm_key", None)
    (checkpoint / "config.json").write_text(json.dumps(config))
    (checkpoint / "dataset_statistics.json").unlink(missing_ok=True)
    env = "--env.id ReachSuites-v0 --env.num-workers 1 --env.envs-per-worker 2 --env.success terminated"
    policy = "--policy.chunk-size 2 --policy.gripper none --policy.device cpu"
    evaluation = "--eval.episodes-per-task 3 --eval.videos 0 --display plain"
    return ["eval", "--checkpoint", str(checkpoint), *f"{env} {policy} {evaluation}".split()]


def test_a_suite_with_pro_stands_for_it_and_its_perturbed_versions_each_once() -> None:
    goal = tuple(f"libero_goal{end}" for end in ("", "_object", "_swap", "_lan", "_task"))
    assert each_suite(["libero_10", "libero_goal+pro", "libero_goal_swap"]) == ("libero_10", *goal)
    assert each_suite(["libero_goal"]) == ("libero_goal",)


def test_the_perturbed_versions_are_suites_whose_files_the_installed_libero_holds() -> None:
    suites = pytest.importorskip("vla_envs.libero.suites")
    for suite in ("libero_spatial", "libero_object", "libero_goal", "libero_10"):
        for version in PERTURBED:
            assert len(suites.suite_tasks(f"{suite}_{version}")) == 10


def test_a_runs_own_suite_gives_way_and_options_come_on_top() -> None:
    config = parse_evaluate(["--checkpoint", "demo", "--suites", "libero_10", "libero_90"])
    assert config.suites == ("libero_10", "libero_90")
    assert config.env.kwargs == {"detail": "fast", "image_size": "128"}
    told = parse_evaluate(["--checkpoint", "demo", "--suites=libero_10", "--env.kwargs", "task_ids=[1]"])
    assert told.env.kwargs == {"task_ids": "[1]"}


def test_suites_are_a_table_and_each_is_an_evaluation_of_its_own(command, tmp_path: Path, capsys) -> None:
    main([*command, "--suites", "libero_goal+pro", "--eval.temperatures", "0", "1", "--output", str(tmp_path / "table")])
    record = json.loads((tmp_path / "table" / "results.json").read_text())
    names = [name for name in suites_env.SUITES if name != "libero_10"]
    assert list(record["suites"]) == names
    assert [task["suite"] for task in record["tasks_t1.0"]] == names
    assert {temperature: every["episodes"] for temperature, every in summaries(record).items()} == {0.0: 15, 1.0: 15}
    assert record["successes"] == sum(of_suite["successes"] for of_suite in record["suites"].values())
    for name in names:
        own = json.loads((tmp_path / "table" / name / "results.json").read_text())
        assert own["played"]["suite"] == name
        assert {key: own[key] for key in record["suites"][name]} == record["suites"][name]
    lines = capsys.readouterr().out.rpartition("published, sampled")[2].splitlines()
    rows = [line.strip("│ ").split("│")[:3] for line in lines if line.startswith("│")]
    assert [[cell.strip() for cell in row] for row in rows] == [*([name, "1", "3"] for name in names), ["all", "5", "15"]]


def test_an_interrupted_table_goes_on_with_the_episodes_that_are_missing(command, tmp_path: Path) -> None:
    settings = parse_evaluate(command[1:]).eval
    seeds = [spec.seed for spec in evaluation_episodes([0], {}, settings, temperature=0.0, train_fraction=0.8, split_seed=0)]
    fault = ("fault=terminate", "fault_suite=libero_goal_swap", f"fault_seed={seeds[1]}", f"marker={tmp_path / 'happened'}")
    command += ["--suites", "libero_goal", "libero_goal_swap", "libero_goal_lan", "--env.kwargs", *fault]
    with pytest.raises(SystemExit) as stop:
        main(command)
    assert stop.value.code == 130
    table = tmp_path / "published-evaluation-suites"
    before = (table / "libero_goal" / "episodes.jsonl").read_text()
    assert not (table / "results.json").exists()
    main(command)
    assert (table / "libero_goal" / "episodes.jsonl").read_text() == before
    assert json.loads((table / "results.json").read_text())["episodes"] == 9
    for suite in ("libero_goal", "libero_goal_swap", "libero_goal_lan"):
        assert Counter(episode.seed for episode in read_episodes(table / suite / "episodes.jsonl")) == dict.fromkeys(seeds, 1)


@pytest.mark.parametrize(
    ("suites", "reason"),
    [
        ("libero_goal libero_gaol", "libero_gaol: ReachSuites-v0: unknown suite 'libero_gaol'"),
        ("libero_goal libero_10", "libero_10: the checkpoint has no action statistics of suite libero_10"),
        ("libero_goal libero_goal_temp", "libero_goal_temp: suite 'libero_goal_temp' lacks a file"),
        ("libero_goal --env.kwargs suite=libero_10", "both say what is played"),
        ("--display none", "--suites needs one or more names"),
    ],
)
def test_a_suite_that_cannot_be_played_is_refused_before_anything_is(
    suites: str, reason: str, command, tmp_path: Path, capsys
) -> None:
    with pytest.raises(SystemExit) as stop:
        main([*command[:-2], "--output", str(tmp_path / "table"), "--suites", *suites.split()])
    assert stop.value.code == 2
    output = capsys.readouterr()
    assert reason in " ".join((output.err + output.out).replace("│", " ").split())
    assert not (tmp_path / "table").exists()
