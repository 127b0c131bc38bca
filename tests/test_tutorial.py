"""docs/tutorial.md, followed from its first block to its last: files are saved and commands run as they stand on the page.

Only numbers are smaller (`FEWER`). All commands run in one process, which spares each the import of torch; the two that set up
an environment are not run, since the tests have one.
"""

import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path

import imageio.v3 as iio

from vla_train.cli import main
from vla_train.run.tracking import read_records

PAGE = (Path(__file__).parents[1] / "docs" / "tutorial.md").read_text()
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
SET_UP = ["make setup", ". .venv/bin/activate"]
FEWER: dict[str, dict[str, str | None]] = {
    "collect": {"--episodes-per-task": "1"},
    "sft": {"--steps": "2", "--eval.every": "2", "--eval.episodes-per-task": "2", "--batch-rows": "4"},
    "train": {
        "--iterations": "1",
        "--rollout.groups-per-iteration": "2",
        "--rollout.group-size": "4",
        "--eval.episodes-per-task": "2",
        "--eval.no-before-training": None,
    },
    "eval": {"--eval.episodes-per-task": "2"},
    "report": {},
}
"""Options of each command that are smaller here than on the page; a flag has no value."""


def follow(language: str, text: str) -> str:
    """Save a file, or run a command; the command that was run, or nothing."""
    if language == "python":
        name = re.match(r"# (\w+\.py)\n", text)
        assert name is not None, "a file on the page begins with its name"
        Path(name[1]).write_text(text)
        return ""
    (program, *arguments) = shlex.split(text.replace("\\\n", " "))
    assert program == "python"
    if arguments[:2] == ["-m", "vla_train"]:
        command, *options = arguments[2:]
        main([command, *with_fewer(options, FEWER[command])])
        return command
    (script,) = arguments
    runpy.run_path(script, run_name="__main__")
    return script


def with_fewer(options: list[str], fewer: dict[str, str | None]) -> list[str]:
    for name, value in fewer.items():
        if value is None:
            options.append(name)
        elif name in options:
            options[options.index(name) + 1] = value
        else:
            options += [name, value]
    return options


def test_the_tutorial_is_followed_to_its_end(tmp_path: Path) -> None:
    assert [text.strip() for _, text in BLOCKS[:2]] == SET_UP
    command = [sys.executable, __file__]  # a process that other tests have not filled
    result = subprocess.run(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=300)
    assert result.returncode == 0, result.stdout
    followed = re.findall(r"^followed: (.+)$", result.stdout, re.MULTILINE)
    assert followed == ["play.py", "collect", "look.py", "sft", "train", "eval", "report", "train"]
    assert "close the microwave\nimage (4, 256, 256, 3) state (4, 8) actions (4, 8, 7)" in result.stdout
    assert re.search(r"close the microwave from state \d+ in \d\d steps", result.stdout)
    assert iio.imread(tmp_path / "play.png").shape == (2 * 256, 4 * 256, 3)
    assert iio.imread(tmp_path / "demonstrations.png").shape == (128, 6 * 128, 3)
    assert (tmp_path / "runs" / "better" / "report.html").stat().st_size > 10_000
    for run in ("better", "door"):
        assert read_records(tmp_path / "runs" / run, "iteration")[0]["rollout/episodes"] >= 4


def test_the_page_says_the_minutes_of_each_of_its_steps() -> None:
    steps = re.findall(r"^## (\d)\. ", PAGE, re.MULTILINE)
    table = re.findall(r"^\| (\d)\. [^|]+ \| ([\d.]+) \|$", PAGE, re.MULTILINE)
    assert [number for number, _ in table] == steps
    assert sum(float(minutes) for _, minutes in table) <= 15


if __name__ == "__main__":
    sys.path.insert(0, "")  # as `python -m` and `python play.py` have it
    for block in BLOCKS[2:]:
        if step := follow(*block):
            print("followed:", step, flush=True)
