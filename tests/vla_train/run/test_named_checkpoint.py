"""What a user names is the same policy wherever it is named: to evaluate, or to start from."""

import shutil
from pathlib import Path

import pytest
from small_runs import small_config

from vla_train.loop import train
from vla_train.run.named_checkpoint import checkpoint_of_run, resolve_checkpoint


@pytest.fixture(scope="module")
def finished(small_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of two iterations."""
    config = small_config(small_checkpoint, tmp_path_factory.mktemp("named") / "first", iterations=2)
    train(config)
    return config.output


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    return shutil.copytree(finished, tmp_path / "runs" / "first")


def damage(step: Path) -> None:
    weights = step / "policy" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])


def test_a_run_stands_for_the_policy_of_its_newest_checkpoint(run: Path) -> None:
    assert resolve_checkpoint(str(run)) == str(run / "checkpoints" / "step_000002" / "policy")


def test_a_damaged_newest_checkpoint_is_passed_over(run: Path) -> None:
    damage(run / "checkpoints" / "step_000002")
    assert resolve_checkpoint(str(run)) == str(run / "checkpoints" / "step_000001" / "policy")


def test_a_run_without_a_complete_checkpoint_is_refused(run: Path) -> None:
    for step in (run / "checkpoints").iterdir():
        damage(step)
    with pytest.raises(ValueError, match="first is the folder of a run, but holds no complete checkpoint"):
        resolve_checkpoint(str(run))


@pytest.mark.parametrize("named", ["checkpoints/step_000001", "checkpoints/step_000001/policy"])
def test_a_checkpoint_of_a_run_and_its_policy_are_the_same(named: str, run: Path) -> None:
    step = run / "checkpoints" / "step_000001"
    assert resolve_checkpoint(str(run / named)) == str(step / "policy")
    assert checkpoint_of_run(str(run / named)) == step.resolve()
    damage(step)
    with pytest.raises(ValueError, match=r"step_000001 is damaged"):
        resolve_checkpoint(str(run / named))


@pytest.mark.parametrize(
    ("here", "named", "policy"),
    [
        (".", "runs/first", "runs/first/checkpoints/step_000002/policy"),
        ("runs/first", ".", "checkpoints/step_000002/policy"),
        ("runs/first/checkpoints/step_000001", ".", "policy"),
        ("runs/first/checkpoints/step_000001/policy", ".", "."),
    ],
)
def test_paths_stay_relative(here: str, named: str, policy: str, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(run.parents[1] / here)
    assert resolve_checkpoint(named) == policy


@pytest.mark.parametrize("folder", ["checkpoints/openvla-oft", "policy", "checkpoints/step_last/policy"])
def test_a_published_checkpoint_is_no_runs_whatever_its_folder_is_called(
    folder: str, small_checkpoint: Path, tmp_path: Path
) -> None:
    copied = shutil.copytree(small_checkpoint, tmp_path / folder)
    assert resolve_checkpoint(str(copied)) == str(copied)
    assert checkpoint_of_run(str(copied)) is None


@pytest.mark.parametrize("name", ["someone/policy", "no/such/folder"])
def test_other_names_stand_for_themselves(name: str) -> None:
    assert resolve_checkpoint(name) == name
