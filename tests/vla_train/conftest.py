"""A checkpoint small enough that a whole run takes a second or two, and configs of such runs."""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the command line does, before PyTorch is imported

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
import torch
from small_runs import save_small_checkpoint, small_config

from vla_train.config import TrainConfig


@pytest.fixture(scope="session")
def small_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_small_checkpoint(tmp_path_factory.mktemp("small") / "checkpoint")


@pytest.fixture
def small_run(small_checkpoint: Path, tmp_path: Path) -> Callable[..., TrainConfig]:
    """Makes configs; see `small_config`."""
    return partial(small_config, small_checkpoint, tmp_path / "run")


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """For policies of a few small matrices: more threads than one only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
