"""Datasets whose pictures are stored as video, as others store them."""

import json
import shutil
import subprocess
from pathlib import Path

import imageio.v3 as iio
import imageio_ffmpeg
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import small_demonstrations as small

from vla_train.demonstrations.dataset import DemonstrationDataset
from vla_train.demonstrations.videos import decode_video


def grey_frames(number: int) -> np.ndarray:
    """(T, 32, 32, 3): a grey that changes from frame to frame."""
    greys = 40 * number + 10 + 6 * np.arange(small.length_of(number), dtype=np.uint8)
    return np.broadcast_to(greys[:, None, None, None], (len(greys), 32, 32, 3)).astype(np.uint8)


@pytest.fixture
def with_video(copied: Path) -> Path:
    """As others store LIBERO in v3: all episodes of a camera in one mp4."""
    features = json.loads((copied / "meta/info.json").read_text())["features"]
    key = "observation.images.image"
    features[key] = {"dtype": "video", "shape": [32, 32, 3], "names": ["height", "width", "channels"]}
    small.change_info(
        copied, features=features, video_path="videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
    )
    video = copied / f"videos/{key}/chunk-000/file-000.mp4"
    write_video(video, np.concatenate([grey_frames(number) for number in range(6)]), fps=20)
    table = copied / "meta/episodes/chunk-000/file-000.parquet"
    rows = pq.read_table(table).to_pylist()
    for row in rows:
        row |= {f"videos/{key}/chunk_index": 0, f"videos/{key}/file_index": 0}
        row[f"videos/{key}/from_timestamp"] = row["dataset_from_index"] / 20
    pq.write_table(pa.Table.from_pylist(rows), table)
    return copied


def write_video(file: Path, frames: np.ndarray, *, fps: int) -> None:
    file.parent.mkdir(parents=True)
    iio.imwrite(file, frames, fps=fps, codec="libx264", macro_block_size=2, output_params=["-crf", "1"])


def test_frames_of_a_video_are_those_of_the_episode(with_video: Path):
    dataset = DemonstrationDataset(with_video)
    assert dataset.image_shapes == {"image": (32, 32, 3)}
    for number in (4, 0, 5):
        frames = dataset.images(number, "image", [2, 0]).astype(int)
        assert np.abs(frames - grey_frames(number)[[2, 0]]).max() <= 2
    frames = dataset.images(np.array([5, 1, 5]), "image", [0, 2, 1]).astype(int)
    assert np.abs(frames - [grey_frames(number)[step] for number, step in ((5, 0), (1, 2), (5, 1))]).max() <= 2


@pytest.mark.parametrize("pause", [0, 1], ids=["whole milliseconds", "and a pause of a frame"])
def test_frames_of_a_video_are_as_they_are_stored_whatever_their_times(pause: int, tmp_path: Path):
    """ffmpeg would give some twice and leave others out, to have a constant rate."""
    frames = np.broadcast_to(np.arange(0, 240, 4, np.uint8)[:, None, None, None], (60, 32, 32, 3))
    plain, video = tmp_path / "plain/video.mp4", tmp_path / "video.mp4"
    write_video(plain, frames, fps=30)
    times = ["-vf", f"setpts=(N+{pause}*gte(N\\,50))/(30*TB)", "-fps_mode", "passthrough", "-video_track_timescale", "1000"]
    ffmpeg = [imageio_ffmpeg.get_ffmpeg_exe(), "-loglevel", "error", "-i", str(plain)]
    subprocess.run([*ffmpeg, *times, "-crf", "1", str(video)], check=True)
    for begin in (0, 1, 46):
        read = decode_video(video, begin_s=begin / 30, num_frames=9, fps=30)
        assert np.abs(read.astype(int) - frames[begin : begin + 9]).max() <= 2


def test_a_video_of_another_rate_or_too_short_for_its_episode_is_refused(with_video: Path):
    small.change_info(with_video, fps=10)
    with pytest.raises(ValueError, match=r"file-000.mp4 has 20 frames per second, where meta/info.json says 10$"):
        DemonstrationDataset(with_video).images(0, "image", [0])
    small.change_info(with_video, fps=20)
    table = with_video / "meta/episodes/chunk-000/file-000.parquet"
    rows = pq.read_table(table).to_pylist()
    for row, missing in zip(rows, (0, 2, 0, 0, 0, 0), strict=True):
        end = (row["dataset_from_index"] + row["length"] - missing) / 20
        row["videos/observation.images.image/to_timestamp"] = end
    pq.write_table(pa.Table.from_pylist(rows), table)
    with pytest.raises(ValueError, match=r"is damaged: episode 1 has 4 frames, but only 0.15 s to 0.25 s of videos/"):
        DemonstrationDataset(with_video)


def test_a_video_that_is_missing_or_no_video_is_refused(with_video: Path):
    (video,) = with_video.rglob("*.mp4")
    video.write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"file-000.mp4 is no video, or damaged"):
        DemonstrationDataset(with_video).images(0, "image", [0])
    video.unlink()
    with pytest.raises(ValueError, match=r"is half-written: videos/.*/file-000.mp4 is missing"):
        DemonstrationDataset(with_video)


def test_pictures_of_another_size_than_the_dataset_says_are_refused(with_video: Path, written: Path, tmp_path: Path):
    of_pictures = Path(shutil.copytree(written, tmp_path / "pictures"))
    for folder, side in ((of_pictures, small.SIDE), (with_video, 32)):
        features = json.loads((folder / "meta/info.json").read_text())["features"]
        features["observation.images.image"]["shape"] = [16, 20, 3]
        small.change_info(folder, features=features)
        for memory_bytes in (0, 1 << 30):
            dataset = DemonstrationDataset(folder, memory_bytes=memory_bytes)
            with pytest.raises(ValueError, match=rf"pictures 'image' have {side} x {side} pixels, where .* says 16 x 20"):
                dataset.images(1, "image", [0])
