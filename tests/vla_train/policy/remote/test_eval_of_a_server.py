"""`python -m vla_train eval --policy.url ...`: whole evaluations, decided elsewhere."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_server import openpi_server

from vla_train.cli import main

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
