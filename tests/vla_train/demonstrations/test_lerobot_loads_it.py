"""LeRobot and Hugging Face's `datasets` load what is written. Skipped without them: `make test-lerobot` has both."""

from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import small_demonstrations as small


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small.write_dataset(tmp_path_factory.mktemp("demonstrations"), 5)


@pytest.fixture
def lerobot(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return pytest.importorskip("lerobot.datasets.lerobot_dataset")


def test_lerobot_reads_every_frame(written: Path, lerobot: ModuleType):
    dataset = lerobot.LeRobotDataset("own/demonstrations", root=written)
    assert (dataset.num_episodes, dataset.fps, dataset.meta.robot_type) == (5, 20, "panda")
    index = 0
    for number in range(5):
        given, frames = small.demonstration(number), small.frames_of(number)
        for step in range(len(frames)):
            item = dataset[index]
            assert item["task"] == given.instruction
            assert (int(item["episode_index"]), int(item["frame_index"]), int(item["index"])) == (number, step, index)
            np.testing.assert_array_equal(item["action"].numpy(), given.actions[step])
            np.testing.assert_array_equal(item["observation.state"].numpy(), given.states[step])
            picture = (item["observation.images.image"].numpy() * 255).round().astype(np.uint8)
            np.testing.assert_array_equal(picture.transpose(1, 2, 0), frames[step])
            assert bool(item["next.done"]) == (step == len(frames) - 1)
            assert bool(item["next.success"]) == (step == len(frames) - 1 and given.origin.success)
            index += 1
    assert index == dataset.num_frames


def test_lerobot_reads_chunks_of_actions_of_chosen_episodes(written: Path, lerobot: ModuleType):
    dataset = lerobot.LeRobotDataset(
        "own/demonstrations", root=written, episodes=[1, 3], delta_timestamps={"action": [0, 0.05, 0.1]}
    )
    given = small.demonstration(3).actions
    first = dataset[small.length_of(1)]
    assert int(first["episode_index"]) == 3
    np.testing.assert_array_equal(first["action"].numpy(), given[:3])


def test_lerobot_merges_our_statistics(written: Path, lerobot: ModuleType):
    statistics = lerobot.LeRobotDatasetMetadata("own/demonstrations", root=written).stats
    for key in ("action", "observation.state", "observation.images.image"):
        assert {"min", "max", "mean", "std", "count", "q01", "q99"} <= statistics[key].keys()
    from lerobot.datasets.compute_stats import aggregate_stats

    merged = aggregate_stats([statistics, statistics])
    np.testing.assert_allclose(merged["action"]["mean"], statistics["action"]["mean"])


def test_datasets_of_hugging_face_decodes_pictures(written: Path):
    datasets = pytest.importorskip("datasets")
    loaded = datasets.load_dataset("parquet", data_files=str(written / "data/*/*.parquet"), cache_dir=str(written / ".cache"))
    row = loaded["train"][small.length_of(0)]
    assert row["episode_index"] == 1
    np.testing.assert_array_equal(np.asarray(row["observation.images.image"]), small.frames_of(1)[0])
    np.testing.assert_allclose(row["action"], small.demonstration(1).actions[0])


def test_pandas_finds_tasks_by_their_instruction(written: Path):
    pandas = pytest.importorskip("pandas")
    tasks = pandas.read_parquet(written / "meta/tasks.parquet")
    assert int(tasks.loc["close the drawer"].task_index) == 1
    assert tasks.iloc[0].name == "open the drawer"
