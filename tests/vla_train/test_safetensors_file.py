"""Files of tensors have the mode of any other file, wherever they are written."""

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from small_runs import save_small_checkpoint

from vla_train.loop import train
from vla_train.safetensors_file import save_file


@pytest.fixture(params=[0o022, 0o027, 0o002])
def mode(request: pytest.FixtureRequest) -> Iterator[int]:
    """The mode of new files under a umask."""
    before = os.umask(request.param)
    yield 0o666 & ~request.param
    os.umask(before)


def modes(folder: Path) -> set[int]:
    return {stat.S_IMODE(path.stat().st_mode) for path in folder.rglob("*") if path.is_file()}


def test_a_file_gets_the_mode_that_the_umask_leaves(mode: int, tmp_path: Path) -> None:
    save_file({"weight": torch.arange(3.0)}, tmp_path / "model.safetensors", metadata={"format": "pt"})
    assert load_file(tmp_path / "model.safetensors")["weight"].tolist() == [0, 1, 2]
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]
    assert modes(tmp_path) == {mode}


def test_a_file_that_was_its_owners_alone_is_replaced_by_one_that_is_not(mode: int, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.touch(mode=0o600)
    save_file({"weight": torch.ones(1)}, path)
    assert modes(tmp_path) == {mode}


def test_a_saved_policy_has_files_of_one_mode(mode: int, tmp_path: Path) -> None:
    assert modes(save_small_checkpoint(tmp_path / "policy")) == {mode}


def test_a_checkpoint_of_a_run_has_files_of_one_mode(small_run, tmp_path: Path) -> None:
    config = small_run(iterations=1)
    before = os.umask(0o022)
    try:
        train(config)
    finally:
        os.umask(before)
    assert modes(config.output / "checkpoints") == {0o644}


def test_a_folder_that_is_not_there_is_an_error_and_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="missing"):
        save_file({"weight": torch.ones(1)}, tmp_path / "missing" / "model.safetensors")
    assert list(tmp_path.iterdir()) == []
