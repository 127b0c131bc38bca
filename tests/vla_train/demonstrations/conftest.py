"""A dataset that is read by many tests, and a copy of it that a test may damage."""

import shutil
from pathlib import Path

import pytest
import small_demonstrations as small


@pytest.fixture(scope="session")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small.write_dataset(tmp_path_factory.mktemp("demonstrations"), 6)


@pytest.fixture
def copied(written: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(written, tmp_path / "copy"))
