"""`python -m vla_train eval --policy.url ...`: whole evaluations, decided elsewhere."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_server import openpi_server

from vla_train.cli import main
from vla_train.command_line import parse_evaluate
from vla_train.pipeline.episodes import evaluation_episodes

ENV = ("--env.id", "reach_env:Reach-v0", "--env.num-workers", "2", "--env.envs-per-worker", "2", "--env.success", "terminated")
EVAL = ("--eval.episodes-per-task", "6", "--eval.initial-states", "all", "--eval.videos", "0", "--policy.chunk-size", "2")
READS = {"reads": ["observation/image"], "image_size": 0, "server": "Right"}


def options(url: str, output: Path) -> list[str]:
    where = ("--policy.factory", "remote", "--policy.url", url, "--policy.kwargs", "protocol=openpi", "connect_s=10")
    return ["eval", *where, *ENV, *EVAL, "--output", str(output)]


def to_the_right(*_: Any) -> np.ndarray:
    return np.ones((5, 2), np.float32)


def test_a_server_is_evaluated_and_named_in_the_results(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with openpi_server(to_the_right, metadata=READS) as (url, heard):
        main(options(url, tmp_path / "results"))
    printed = " ".join(capsys.readouterr().out.split())
    assert f"{url}, as its server decides" in printed
    assert f"policy: server {url}, called Right, protocol openpi, images sent as drawn" in printed
    results = json.loads((tmp_path / "results" / "results.json").read_text())
    assert (results["episodes"], results["successes"]) == (6, 6)
    assert results["played"]["policy"]["server"] == url
    assert heard.connections == 2 + 4  # two looks, and a session for each slot


def test_a_server_that_dies_leaves_one_line_and_what_was_played(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = 0

    def answer(*_: Any) -> Any:
        nonlocal asked
        asked += 1
        return to_the_right() if asked < 15 else "CUDA out of memory"

    with openpi_server(answer, metadata=READS) as (url, _):
        with pytest.raises(SystemExit) as stop:
            main(options(url, tmp_path / "results"))
        assert stop.value.code == 1
        errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
        assert errors == [f"error: {url} refused: CUDA out of memory"]
        done = len((tmp_path / "results" / "episodes.jsonl").read_text().splitlines())
        assert 0 < done < 6
        asked = -1000
        main(options(url, tmp_path / "results"))
    assert len((tmp_path / "results" / "episodes.jsonl").read_text().splitlines()) == 6


def test_an_interrupted_table_of_a_server_goes_on_in_the_output_that_it_names(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    server = options("ws://localhost:1", tmp_path)[: -len((*ENV, *EVAL, "--output", "its"))]
    env = ("--env.id", "suites_env:ReachSuites-v0", *ENV[2:])
    command = [*server, *env, *EVAL, "--suites", "libero_goal", "libero_goal_swap", "--display", "plain"]
    fault = ("fault=terminate", "fault_suite=libero_goal_swap", f"marker={tmp_path / 'happened'}")
    settings = parse_evaluate(command[1:]).eval
    seeds = [spec.seed for spec in evaluation_episodes([0], {}, settings, temperature=0.0, train_fraction=0.8, split_seed=0)]
    command += ["--env.kwargs", *fault, f"fault_seed={seeds[1]}"]
    with openpi_server(to_the_right, metadata=READS) as (url, _):
        command[command.index("--policy.url") + 1] = url
        with pytest.raises(SystemExit, match="130"):
            main(command)
        printed = " ".join(capsys.readouterr().out.split())
        (output,) = (tmp_path / "evaluations").glob("*/*")
        named = printed.partition("the same command with --output ")[2].split()[0]
        assert Path(named).resolve() == output
        assert (output / "libero_goal" / "results.json").exists()
        main([*command, "--output", named])
    assert sorted(path.name for path in output.iterdir()) == ["libero_goal", "libero_goal_swap", "results.json"]
    assert f"{url}, as its server decides" in " ".join(capsys.readouterr().out.rpartition("results: ")[0].split())
