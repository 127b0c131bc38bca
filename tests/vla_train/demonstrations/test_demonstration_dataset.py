"""Reading datasets, ours and those of others."""

import itertools
import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import small_demonstrations as small
from PIL import Image

from vla_train.demonstrations.dataset import DemonstrationDataset


def test_what_was_written_is_read(written: Path):
    dataset = DemonstrationDataset(written)
    assert (dataset.fps, dataset.robot_type, dataset.action_dim, dataset.state_dim) == (20, "panda", 7, 8)
    assert dataset.image_keys == ("image",)
    assert dataset.suite == "libero_90"
    assert dataset.mirrored_images is True
    for number, episode in enumerate(dataset.episodes):
        given = small.demonstration(number)
        assert (episode.index, episode.task, episode.length) == (number, given.instruction, small.length_of(number))
        origin = given.origin
        assert (episode.success, episode.task_id, episode.init_state_id) == (origin.success, origin.task_id, number)
        np.testing.assert_array_equal(dataset.actions(number), given.actions)
        np.testing.assert_array_equal(dataset.states(number), given.states)
        assert dataset.actions(number).dtype == np.float32


@pytest.mark.parametrize("memory_bytes", [3000, 1 << 30], ids=["less than two episodes", "all decoded"])
def test_frames_are_read_in_any_order_and_by_several_threads(memory_bytes: int, written: Path):
    dataset = DemonstrationDataset(written, memory_bytes=memory_bytes)
    assert dataset.stays_decoded == (memory_bytes > 3000)
    rng = np.random.default_rng(0)
    wanted = [(int(episode), rng.integers(0, small.length_of(int(episode)), 3)) for episode in rng.integers(0, 6, 100)]
    with ThreadPoolExecutor(4) as threads:
        read = list(threads.map(lambda one: dataset.images(one[0], "image", one[1]), wanted))
    for (episode, steps), frames in zip(wanted, read, strict=True):
        np.testing.assert_array_equal(frames, small.frames_of(episode)[steps])
    of_many = [(episode, step) for episode, steps in wanted for step in steps]
    frames = dataset.images(*np.array(of_many)[:, :1].T, "image", np.array(of_many)[:, 1])
    np.testing.assert_array_equal(frames, [small.frames_of(episode)[step] for episode, step in of_many])
    assert dataset.images(0, "image", []).shape == (0, small.SIDE, small.SIDE, 3)


def test_a_camera_or_a_step_that_is_not_there_is_refused(written: Path):
    dataset = DemonstrationDataset(written)
    with pytest.raises(ValueError, match="has no images 'wrist_image', only image"):
        dataset.images(0, "wrist_image", [0])
    with pytest.raises(ValueError, match=r"episode 0 has the steps 0\.\.2, got 3$"):
        dataset.images(0, "image", [3])
    with pytest.raises(ValueError, match="steps are integers, got float64"):
        dataset.images(0, "image", [0.7])
    assert dataset.images(0, "image", []).shape[0] == 0
    np.testing.assert_array_equal(dataset.images(0, "image", np.array([1], np.uint64)), dataset.images(0, "image", [1]))
    for episode in (-1, 99):
        with pytest.raises(ValueError, match=rf"has the episodes 0\.\.5, got {episode}$"):
            dataset.images(episode, "image", [0])
        with pytest.raises(ValueError, match=rf"has the episodes 0\.\.5, got {episode}$"):
            dataset.actions(episode)


def test_a_folder_that_is_no_dataset_says_so(tmp_path: Path):
    with pytest.raises(ValueError, match=r"is not a dataset of demonstrations: it has no meta/info.json"):
        DemonstrationDataset(tmp_path)
    small.open_writer(tmp_path)
    with pytest.raises(ValueError, match="is not a dataset of demonstrations: no episode is complete yet"):
        DemonstrationDataset(tmp_path)


def test_another_version_is_refused(copied: Path):
    small.change_info(copied, codebase_version="v4.0")
    with pytest.raises(ValueError, match=r"has LeRobot's format v4.0; v2.0, v2.1 and v3 are read"):
        DemonstrationDataset(copied)


def test_a_half_written_dataset_is_refused(copied: Path):
    small.change_info(copied, total_episodes=7)
    with pytest.raises(ValueError, match=r"is half-written: meta/info.json counts 7 episodes, 6 are there"):
        DemonstrationDataset(copied)


def test_a_data_file_that_is_missing_or_cut_off_is_refused(copied: Path):
    file = copied / "data/chunk-000/file-000.parquet"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"file-000.parquet is damaged or half-written"):
        DemonstrationDataset(copied)
    file.unlink()
    with pytest.raises(ValueError, match=r"file-000.parquet is missing"):
        DemonstrationDataset(copied)


def test_a_dataset_without_actions_is_refused(copied: Path):
    features = json.loads((copied / "meta/info.json").read_text())["features"]
    del features["action"]
    small.change_info(copied, features=features)
    with pytest.raises(ValueError, match="holds no actions"):
        DemonstrationDataset(copied)


@pytest.mark.parametrize("fps", [None, "fast", 0, True, float("nan")])
def test_a_rate_that_is_none_is_refused(copied: Path, fps: object):
    small.change_info(copied, fps=fps)
    with pytest.raises(ValueError, match=r"meta/info.json must say how many frames per second there are \(fps\), got"):
        DemonstrationDataset(copied)


def test_statistics_are_not_needed_and_a_damaged_provenance_is_not_taken_for_none(copied: Path):
    (copied / "meta/stats.json").unlink()
    DemonstrationDataset(copied)
    for damage in ("{", '{"conventions": 5}', '{"settings": {"env": "Libero-v0"}}'):
        (copied / "meta/provenance.json").write_text(damage)
        with pytest.raises(ValueError, match=r"meta/provenance.json is damaged"):
            DemonstrationDataset(copied)
    (copied / "meta/provenance.json").write_text('{"conventions": null, "settings": {"env": null}}')
    assert DemonstrationDataset(str(copied)).env_id is None


@pytest.mark.parametrize("length", [None, 0, -3])
def test_an_episode_without_a_length_is_named(length: int | None, copied: Path):
    def change(table: pa.Table) -> pa.Table:
        lengths = pa.array([length, *table.column("length").to_pylist()[1:]], pa.int64())
        return table.set_column(table.column_names.index("length"), "length", lengths)

    rewrite(copied / "meta/episodes/chunk-000/file-000.parquet", change)
    with pytest.raises(ValueError, match=rf"is damaged: episode 0 has the length {length}$"):
        DemonstrationDataset(copied)


def test_a_damaged_description_is_one_line_that_names_the_dataset(copied: Path):
    features = json.loads((copied / "meta/info.json").read_text())["features"]
    damages: list[dict[str, Any]] = [
        {"data_path": "data/{chunk_index:03d"},
        {"features": features | {"action": features["action"] | {"shape": "x"}}},
        {"features": None},
    ]
    for damage in damages:
        small.change_info(copied, **damage)
        with pytest.raises(ValueError, match=rf"^{copied}.*damaged") as raised:
            DemonstrationDataset(copied)
        assert "\n" not in str(raised.value)


def as_jpeg(frame: np.ndarray) -> dict[str, Any]:
    file = BytesIO()
    Image.fromarray(frame).save(file, "JPEG", quality=95)
    return {"bytes": file.getvalue(), "path": "frame.jpg"}


@pytest.fixture
def of_version_2(tmp_path: Path) -> Path:
    """As `physical-intelligence/libero` is laid out: one file per episode, tables as JSON lines, names of its own."""
    folder = tmp_path / "v2"
    (folder / "meta").mkdir(parents=True)
    (folder / "data/chunk-000").mkdir(parents=True)
    rows = []
    for number in range(3):
        given, frames = small.demonstration(number), small.frames_of(number)
        length = len(frames)
        table = {
            "image": [as_jpeg(frame) for frame in frames],
            "wrist_image": [as_jpeg(frame[::-1]) for frame in frames],
            "state": pa.array(given.states.tolist(), pa.list_(pa.float32(), 8)),
            "actions": pa.array(given.actions.tolist(), pa.list_(pa.float32(), 7)),
            "episode_index": [number] * length,
        }
        pq.write_table(pa.table(table), folder / f"data/chunk-000/episode_{number:06d}.parquet", row_group_size=2)
        rows.append({"episode_index": number, "tasks": [given.instruction], "length": length})
    (folder / "meta/episodes.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    picture = {"dtype": "image", "shape": [small.SIDE, small.SIDE, 3], "names": ["height", "width", "channel"]}
    info = {
        "codebase_version": "v2.0",
        "robot_type": "panda",
        "total_episodes": 3,
        "chunks_size": 1000,
        "fps": 10,
        "data_path": "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet",
        "features": {
            "image": picture,
            "wrist_image": picture,
            "state": {"dtype": "float32", "shape": [8], "names": ["state"]},
            "actions": {"dtype": "float32", "shape": [7], "names": ["actions"]},
        },
    }
    (folder / "meta/info.json").write_text(json.dumps(info))
    return folder


def test_older_datasets_with_one_file_per_episode_and_other_names_are_read(of_version_2: Path):
    dataset = DemonstrationDataset(of_version_2)
    assert (dataset.fps, dataset.image_keys, dataset.suite) == (10, ("image", "wrist_image"), None)
    assert dataset.episodes[1].success is None
    assert not dataset.actions_as_played
    np.testing.assert_array_equal(dataset.actions(2), small.demonstration(2).actions)
    np.testing.assert_array_equal(dataset.states(2), small.demonstration(2).states)
    for step in range(small.length_of(2)):
        decoded = np.asarray(Image.open(BytesIO(as_jpeg(small.frames_of(2)[step])["bytes"])))
        np.testing.assert_array_equal(dataset.images(2, "image", [step])[0], decoded)


def test_version_3_of_others_with_all_episodes_in_one_row_group_is_read(written: Path, copied: Path):
    file = copied / "data/chunk-000/file-000.parquet"
    pq.write_table(pq.read_table(file), file)
    (copied / "meta/provenance.json").unlink()
    table = pq.read_table(copied / "meta/episodes/chunk-000/file-000.parquet")
    foreign = table.drop_columns(["success", "suite", "task_id", "init_state_id", "seed", "attempt"])
    pq.write_table(foreign, copied / "meta/episodes/chunk-000/file-000.parquet")
    dataset, own = DemonstrationDataset(copied), DemonstrationDataset(written)
    assert pq.read_metadata(file).num_row_groups == 1
    assert (dataset.suite, dataset.mirrored_images, dataset.episodes[0].task_id) == (None, None, None)
    for episode in own.episodes:
        np.testing.assert_array_equal(dataset.actions(episode.index), own.actions(episode.index))
        steps = range(episode.length)
        np.testing.assert_array_equal(dataset.images(episode.index, "image", steps), own.images(episode.index, "image", steps))


def test_rows_that_cannot_be_read_are_the_files_fault(copied: Path):
    dataset = DemonstrationDataset(copied)
    file = copied / "data/chunk-000/file-000.parquet"
    whole = file.read_bytes()
    file.write_bytes(whole[:4] + b"\xff" * (len(whole) // 2) + whole[4 + len(whole) // 2 :])  # what it holds is as it was
    for read in (lambda: dataset.actions(0), lambda: dataset.images(0, dataset.image_keys[0], [0])):
        with pytest.raises(ValueError, match=r"file-000.parquet is damaged or half-written"):
            read()


@pytest.mark.parametrize(
    ("shape", "names"),
    [
        ([small.SIDE, small.SIDE, 3], None),
        ([3, small.SIDE, small.SIDE], ["channels", "height", "width"]),
        ([1, small.SIDE, small.SIDE], None),
        ([4, small.SIDE, small.SIDE], ["channel", "height", "width"]),
        ([small.SIDE, small.SIDE, 4], ["height", "width", "channels"]),
        ([small.SIDE, small.SIDE], ["height", "width"]),
    ],
    ids=str,
)
def test_pictures_may_be_described_either_way_round_and_of_any_colours(shape: list[int], names: object, copied: Path):
    features = json.loads((copied / "meta/info.json").read_text())["features"]
    features["observation.images.image"] |= {"shape": shape, "names": names}
    small.change_info(copied, features=features)
    dataset = DemonstrationDataset(copied)
    assert dataset.image_shapes == {"image": (small.SIDE, small.SIDE, 3)}
    np.testing.assert_array_equal(dataset.images(1, "image", [0])[0], small.frames_of(1)[0])
    for damage in ([5], [None, None, 3], [-1, 32, 3], [10**6, 10**6, 3]):
        features["observation.images.image"]["shape"] = damage
        small.change_info(copied, features=features)
        with pytest.raises(ValueError, match=rf"{copied} is damaged: meta/info.json: pictures have the shape \("):
            DemonstrationDataset(copied)


def rewrite(file: Path, change: Callable[[pa.Table], pa.Table]) -> None:
    pq.write_table(change(pq.read_table(file)), file)


def rewrite_rows(file: Path, change: Callable[[list[dict[str, Any]]], Any]) -> None:
    rows = pq.read_table(file).to_pylist()
    change(rows)
    pq.write_table(pa.Table.from_pylist(rows), file)


def lengthen(rows: list[dict[str, Any]]) -> None:
    rows[0]["length"] += 2


def shorten(rows: list[dict[str, Any]]) -> None:
    rows[0]["length"] -= 1


def renumber(rows: list[dict[str, Any]]) -> None:
    for row, number in zip(rows, range(5, -1, -1), strict=True):
        row["episode_index"] = number


@pytest.mark.parametrize("change", [lengthen, shorten, renumber, lambda rows: rows.pop(0)])
def test_rows_that_say_that_they_are_of_another_episode_are_refused(change: Callable[[Any], Any], copied: Path):
    rewrite_rows(copied / "meta/episodes/chunk-000/file-000.parquet", change)
    small.change_info(copied, total_episodes=5)
    with pytest.raises(ValueError, match=r"is damaged: row \d+ of data/chunk-000/file-000.parquet is of another episode than"):
        DemonstrationDataset(copied)


def test_rows_in_another_order_are_refused(of_version_2: Path):
    file = of_version_2 / "data/chunk-000/episode_000001.parquet"
    rewrite(file, lambda table: table.append_column("frame_index", pa.array(range(len(table)))))
    DemonstrationDataset(of_version_2)
    rewrite(file, lambda table: table.take([0, 2, 1, *range(3, len(table))]))
    with pytest.raises(ValueError, match=r"is damaged: row 1 of data/chunk-000/episode_000001.parquet is of another episode"):
        DemonstrationDataset(of_version_2)


def test_an_episode_that_is_described_twice_is_refused(copied: Path):
    rewrite_rows(copied / "meta/episodes/chunk-000/file-000.parquet", lambda rows: rows.append(rows[1]))
    with pytest.raises(ValueError, match=r"is damaged: episode 1 is described twice$"):
        DemonstrationDataset(copied)


@pytest.mark.parametrize("tasks", [["open", "close"], [], [None], [3], [""], ""])
def test_an_episode_without_one_instruction_is_refused(tasks: object, of_version_2: Path):
    file = of_version_2 / "meta/episodes.jsonl"
    first, *others = file.read_text().splitlines()
    file.write_text("\n".join([json.dumps(json.loads(first) | {"tasks": tasks}), *others]))
    with pytest.raises(
        ValueError, match=r"is damaged: episode 0 has the tasks .*, where one instruction for all of it is read"
    ):
        DemonstrationDataset(of_version_2)


def test_an_instruction_may_stand_by_itself_and_hold_any_character(of_version_2: Path):
    told = "open\u2028the drawer"
    file = of_version_2 / "meta/episodes.jsonl"
    first, *others = file.read_text().splitlines()
    row = json.dumps(json.loads(first) | {"tasks": told}, ensure_ascii=False)
    file.write_text("\n".join([row, *others]), encoding="utf-8")
    assert DemonstrationDataset(of_version_2).episodes[0].task == told


def test_what_a_table_says_of_an_episode_is_of_its_kind(copied: Path):
    table = copied / "meta/episodes/chunk-000/file-000.parquet"

    def say(**values: Any) -> None:
        rewrite_rows(table, lambda rows: [row.update(values) for row in rows])

    say(success=0, task_id=3.0)
    episode = DemonstrationDataset(copied).episodes[0]
    assert (episode.success, episode.task_id) == (False, 3)
    assert isinstance(episode.task_id, int)
    rewrite_rows(table, lambda rows: [row.update(dataset_from_index=float(row["dataset_from_index"])) for row in rows])
    np.testing.assert_array_equal(DemonstrationDataset(copied).actions(2), small.demonstration(2).actions)
    for wrong, said in (
        ({"success": "failure"}, "success is 'failure'"),
        ({"task_id": "3"}, "task_id is '3'"),
        ({"suite": 5}, "suite is 5"),
    ):
        say(**{"success": True, "task_id": 3, "suite": None} | wrong)
        with pytest.raises(ValueError, match=rf"{copied} is damaged: {said}, "):
            DemonstrationDataset(copied)


def test_pictures_of_more_than_eight_bits_and_missing_ones_are_refused(of_version_2: Path):
    deep = BytesIO()
    Image.fromarray(np.full((small.SIDE, small.SIDE), 30_000, np.uint16)).save(deep, "PNG")
    for picture, said in (
        ({"bytes": deep.getvalue(), "path": None}, r"mode I;16: pictures of 8 bits"),
        (None, "image lacks a picture"),
    ):
        rewrite_rows(
            of_version_2 / "data/chunk-000/episode_000001.parquet",
            lambda rows, picture=picture: rows[0].update(image=picture),
        )
        with pytest.raises(ValueError, match=said):
            DemonstrationDataset(of_version_2).images(1, "image", [0])


@pytest.mark.parametrize("column", ["actions", "state", "image"])
def test_a_file_that_lacks_a_column_is_named_whichever_it_is(column: str, of_version_2: Path):
    rewrite(of_version_2 / "data/chunk-000/episode_000002.parquet", lambda table: table.drop_columns([column]))
    with pytest.raises(ValueError, match=rf"names the column {column}, data/chunk-000/episode_000002.parquet does not have it"):
        DemonstrationDataset(of_version_2)


@pytest.mark.parametrize("lengths", [[3, 3], [6, 8]])
def test_a_file_whose_actions_are_of_another_length_is_named(lengths: list[int], of_version_2: Path):
    def shorter(table: pa.Table) -> pa.Table:
        rows = [[*row, 0.0] for row in table.column("actions").to_pylist()]
        cut = [row[:length] for row, length in zip(rows, itertools.cycle(lengths), strict=False)]
        actions = pa.array(cut, pa.list_(pa.float32()))
        return table.set_column(table.column_names.index("actions"), "actions", actions)

    rewrite(of_version_2 / "data/chunk-000/episode_000002.parquet", shorter)
    dataset = DemonstrationDataset(of_version_2)
    assert dataset.actions(1).shape[1] == 7
    with pytest.raises(ValueError, match=r"episode_000002.parquet: actions does not hold 7 numbers in each row"):
        dataset.actions(2)


@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary()], ids=str)
def test_pictures_may_be_stored_without_a_path(kind: pa.DataType, of_version_2: Path):
    expected = DemonstrationDataset(of_version_2).images(1, "image", [0])
    for file in of_version_2.rglob("*.parquet"):

        def plain(table: pa.Table) -> pa.Table:
            pictures = pa.array([row["bytes"] for row in table.column("image").to_pylist()], kind)
            return table.set_column(table.column_names.index("image"), "image", pictures)

        rewrite(file, plain)
    np.testing.assert_array_equal(DemonstrationDataset(of_version_2).images(1, "image", [0]), expected)


def test_a_column_that_holds_no_pictures_or_no_numbers_is_named(of_version_2: Path):
    def words(column: str) -> Callable[[pa.Table], pa.Table]:
        return lambda table: table.set_column(table.column_names.index(column), column, pa.array(["word"] * len(table)))

    for column in ("image", "actions"):
        rewrite(of_version_2 / "data/chunk-000/episode_000001.parquet", words(column))
    dataset = DemonstrationDataset(of_version_2)
    with pytest.raises(ValueError, match=r"episode_000001.parquet: image holds string, and no pictures"):
        dataset.images(1, "image", [0])
    with pytest.raises(ValueError, match=r"episode_000001.parquet: actions holds string, and no numbers"):
        dataset.actions(1)
    nested = pa.array([{"joint": 0.5}] * small.length_of(1))
    rewrite(
        of_version_2 / "data/chunk-000/episode_000001.parquet",
        lambda table: table.set_column(table.column_names.index("actions"), "actions", nested),
    )
    with pytest.raises(ValueError, match=r"actions holds struct<joint: double>, and no numbers"):
        DemonstrationDataset(of_version_2).actions(1)
