"""What a writer leaves behind, however it ends."""

import json
import resource
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import small_demonstrations as small

from vla_train.demonstrations import writer as writing
from vla_train.demonstrations.dataset import DemonstrationDataset
from vla_train.demonstrations.writer import DatasetWriter, check_folder
from vla_train.errors import RunError
from vla_train.files import replace_file


@contextmanager
def files_no_larger_than(num_bytes: int) -> Iterator[None]:
    """A disk that is nearly full: writing more into a file fails."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.fixture
def small_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two or three episodes fill a data file."""
    monkeypatch.setattr(writing, "FILE_BYTES", 5_000)


class Killed(BaseException):
    """Stands for the end of the process."""


@pytest.mark.usefixtures("small_files")
@pytest.mark.parametrize("num_files", range(1, 26))
def test_a_writer_that_was_killed_at_any_file_leaves_a_dataset_and_goes_on_to_the_bytes_of_an_unbroken_one(
    num_files: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    whole = small.contents(small.write_dataset(tmp_path / "whole", 7))
    folder, written = tmp_path / "broken", 0

    def replace_until_killed(file: Path, content: bytes) -> None:
        nonlocal written
        if written == num_files:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.with_name(file.name + ".writing").write_bytes(content[: len(content) // 2])
            raise Killed
        written += 1
        replace_file(file, content)

    with monkeypatch.context() as patch:
        patch.setattr(writing, "replace_file", replace_until_killed)
        with pytest.raises(Killed):
            small.write_dataset(folder, 7)

    if (folder / "meta/info.json").exists():
        dataset = DemonstrationDataset(folder)
        assert len(dataset.episodes) == json.loads((folder / "meta/info.json").read_text())["total_episodes"]
        for episode in dataset.episodes:
            np.testing.assert_array_equal(dataset.actions(episode.index), small.demonstration(episode.index).actions)
            frames = dataset.images(episode.index, "image", range(episode.length))
            np.testing.assert_array_equal(frames, small.frames_of(episode.index))

    writer = small.open_writer(folder)
    for number in range(len(writer.origins), 7):
        writer.append(small.demonstration(number))
    writer.close()
    left = {name: content for name, content in small.contents(folder).items() if not name.endswith(".writing")}
    assert left == whole
    assert sum(name.startswith("data/") for name in whole) > 2


@pytest.mark.usefixtures("small_files")
def test_a_full_disk_is_one_clear_line_and_what_was_there_stays_readable(tmp_path: Path):
    writer = small.open_writer(tmp_path)
    writer.append(small.demonstration(0))
    before = small.contents(tmp_path)
    with files_no_larger_than(1000), pytest.raises(RunError) as raised:
        writer.append(small.demonstration(1))
    assert "\n" not in str(raised.value)
    assert f"{tmp_path} cannot be written to" in str(raised.value)
    assert "complete episodes there: 1; the same command goes on after them" in str(raised.value)
    assert small.contents(tmp_path) == before
    writer.append(small.demonstration(1))
    assert len(DemonstrationDataset(tmp_path).episodes) == 2


def test_a_folder_that_holds_something_else_is_refused_and_left_alone(tmp_path: Path):
    (tmp_path / "thesis.tex").write_text("chapter 1")
    with pytest.raises(ValueError, match=r"holds something else \(thesis.tex\): choose another output"):
        small.open_writer(tmp_path)
    assert list(small.contents(tmp_path)) == ["thesis.tex"]


def test_a_dataset_of_other_settings_is_refused_by_the_name_of_the_setting(tmp_path: Path):
    before = small.contents(small.write_dataset(tmp_path, 2))
    asked = {**small.PROVENANCE, "settings": {"suite": "libero_90", "seed": 1}}
    with pytest.raises(ValueError, match=r"holds demonstrations with settings.seed 0, not 1: choose another output"):
        DatasetWriter(tmp_path, features=small.FEATURES, provenance=asked)
    assert small.contents(tmp_path) == before


def test_settings_are_compared_as_far_as_they_are_known(tmp_path: Path):
    small.write_dataset(tmp_path, 1)
    assert not check_folder(tmp_path, {"settings": {"suite": "libero_90"}})
    assert check_folder(tmp_path / "new", {"settings": {"suite": "libero_90"}})


def test_statistics_of_a_finished_dataset_are_those_of_all_its_frames(tmp_path: Path):
    dataset = DemonstrationDataset(small.write_dataset(tmp_path, 9))
    statistics = json.loads((tmp_path / "meta/stats.json").read_text())
    actions = np.concatenate([dataset.actions(index) for index in range(9)]).astype(np.float64)
    np.testing.assert_allclose(statistics["action"]["mean"], actions.mean(0))
    np.testing.assert_allclose(statistics["action"]["std"], actions.std(0))
    np.testing.assert_allclose(statistics["action"]["q01"], np.quantile(actions, 0.01, axis=0))
    assert statistics["action"]["count"] == [len(actions)]
    frames = np.concatenate([small.frames_of(number) for number in range(9)]) / 255
    picture = statistics["observation.images.image"]
    np.testing.assert_allclose(np.ravel(picture["mean"]), frames.mean((0, 1, 2)))
    np.testing.assert_allclose(np.ravel(picture["std"]), frames.std((0, 1, 2)))
    np.testing.assert_allclose(np.ravel(picture["max"]), frames.max((0, 1, 2)))
    assert np.shape(picture["min"]) == (3, 1, 1)


def test_a_writer_that_goes_on_knows_what_was_written(tmp_path: Path):
    small.write_dataset(tmp_path, 4)
    assert small.open_writer(tmp_path).origins == tuple(small.demonstration(number).origin for number in range(4))


def test_without_pyarrow_the_error_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(__import__("sys").modules, "pyarrow.parquet", None)
    with pytest.raises(ImportError, match=r"need pyarrow: pip install 'vla-train\[data\]'"):
        small.open_writer(tmp_path / "new")
    shutil.rmtree(tmp_path)
