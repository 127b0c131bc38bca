"""A folder in which one process trains is refused to all others, until that process has ended in whatever way."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from vla_train.config import TrainConfig
from vla_train.loop import train
from vla_train.run import opening
from vla_train.run.lock import lock_run

HOLD = """
import sys, time
from pathlib import Path
from vla_train.run.lock import lock_run
lock_run(Path(sys.argv[1]))
print("locked", flush=True)
time.sleep(600)
"""


def test_a_folder_in_use_is_refused_and_is_free_again_when_the_process_is_killed(tmp_path: Path) -> None:
    run = tmp_path / "runs" / "one"
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(run)], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "locked\n"
        with pytest.raises(ValueError, match=r"another process trains in .*runs/one"):
            lock_run(run)
    finally:
        process.kill()
        process.wait()
    lock_run(run)()


def test_a_folder_is_free_again_when_it_was_given_back(tmp_path: Path) -> None:
    give_back = lock_run(tmp_path)
    with pytest.raises(ValueError, match="another process trains"):
        lock_run(tmp_path)
    give_back()
    lock_run(tmp_path)()
    assert list(tmp_path.iterdir()) == []


def test_other_runs_are_not_concerned(tmp_path: Path) -> None:
    locks = [lock_run(tmp_path / name) for name in ("one", "two")]
    for give_back in locks:
        give_back()


def test_a_folder_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(ValueError, match="cannot be written to"):
        lock_run(tmp_path / "file" / "run")


def test_a_run_that_loses_the_race_for_a_folder_leaves_it_to_the_winner(
    small_run: Callable[..., TrainConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    config, held = small_run(), []

    def be_second(run: Path) -> Callable[[], None]:
        held.append(lock_run(run))
        return lock_run(run)

    monkeypatch.setattr(opening, "lock_run", be_second)
    with pytest.raises(ValueError, match="another process trains"):
        train(config)
    assert config.output.is_dir()
    held[0]()


def test_a_run_that_cannot_be_set_up_leaves_no_folder_of_its_own(small_run: Callable[..., TrainConfig]) -> None:
    config = small_run(env={"id": "reach_env:Nowhere-v0"})
    with pytest.raises(ValueError, match="Nowhere"):
        train(config)
    assert not config.output.exists()
