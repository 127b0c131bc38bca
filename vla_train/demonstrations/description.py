"""What a dataset folder says of itself: its columns, its episodes, and where they lie. Everything is checked before it is read.

Versions: v3 (several episodes to a file, tables in parquet) and v2.0 / v2.1 (one file per episode, tables as JSON lines).
"""

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vla_train.demonstrations import layout
from vla_train.demonstrations.parquet import column_names, count_rows, read_columns, require_pyarrow

_ACTIONS = (layout.ACTION, "actions")
_STATES = (layout.STATE, "state")
_ORIGIN = ("success", "suite", "task_id", "init_state_id")


@dataclass(frozen=True, kw_only=True, slots=True)
class DemonstratedEpisode:
    """One episode of a dataset."""

    index: int
    """Its place in the dataset."""
    task: str
    """The instruction."""
    length: int
    """T."""
    success: bool | None = None
    """None where the dataset does not say, as the following."""
    suite: str | None = None
    task_id: int | None = None
    init_state_id: int | None = None


@dataclass(frozen=True, slots=True)
class VideoPlace:
    """Where the pictures of an episode lie that are stored as video."""

    file: Path
    begin_s: float
    """Time of the first picture in the file."""


@dataclass(frozen=True, slots=True)
class EpisodePlace:
    """Where its frames lie."""

    file: Path
    first_row: int
    videos: Mapping[str, VideoPlace]
    """By column; empty where pictures lie in `file` too."""


@dataclass(frozen=True, slots=True)
class Vector:
    """A column of vectors."""

    column: str
    dim: int


@dataclass(frozen=True, slots=True)
class Camera:
    """A column of pictures."""

    column: str
    shape: tuple[int, int, int]
    """(H, W, 3)."""
    is_video: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Description:
    """All of it."""

    fps: float
    robot_type: str | None
    action: Vector
    state: Vector | None
    cameras: Mapping[str, Camera]
    """By their names without prefix."""
    episodes: tuple[DemonstratedEpisode, ...]
    places: tuple[EpisodePlace, ...]
    """Of each episode."""
    suite: str | None
    mirrored_images: bool | None
    """Whether images are mirrored left to right; None where the dataset does not say."""
    env_id: str | None
    """The env that `collect` played; None for a dataset of others."""
    env_kwargs: Mapping[str, str]
    """Its arguments; empty for a dataset of others."""
    actions_as_played: bool
    """Whether it says that actions are as its env takes them; else `conventions` tells."""


def describe(folder: Path) -> Description:
    """Read and check all that is no frame.

    Raises:
        ValueError: It is no dataset, of a version that is not read, half-written, or without actions; one line says which.
        ImportError: pyarrow is not installed.
    """
    require_pyarrow()
    info = _read_info(folder)
    try:
        features = info["features"]
        action, state = _vector(features, _ACTIONS), _vector(features, _STATES)
        cameras = {
            name.removeprefix(layout.IMAGES): Camera(name, _picture_shape(feature), feature["dtype"] == "video")
            for name, feature in features.items()
            if feature["dtype"] in ("image", "video")
        }
        videos = [camera.column for camera in cameras.values() if camera.is_video]
        rows, places = (_version_3 if info["codebase_version"].startswith("v3") else _version_2)(folder, info, videos)
        robot_type = info.get("robot_type")
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        raise ValueError(f"{folder}: {layout.INFO}, or a table beside it, lacks {error}: the dataset is damaged") from None
    except ValueError as error:
        raise ValueError(str(error) if str(folder) in str(error) else f"{folder} is damaged: {layout.INFO}: {error}") from None
    for episode in rows:
        if not isinstance(episode.length, int) or episode.length < 1:
            raise ValueError(f"{folder} is damaged: episode {episode.index} has the length {episode.length!r}")
    fps = info.get("fps")
    if isinstance(fps, bool) or not isinstance(fps, int | float) or not 0 < fps < math.inf:
        raise ValueError(f"{folder}: {layout.INFO} must say how many frames per second there are (fps), got {fps!r}")
    if action is None:
        raise ValueError(f"{folder} holds no actions: it has the columns {', '.join(sorted(features))}")
    if not rows:
        raise ValueError(f"{folder} holds no episodes")
    vectors = [vector.column for vector in (action, state) if vector is not None]
    pictures = [camera.column for camera in cameras.values() if not camera.is_video]
    _check_files(folder, rows, places, {*vectors, *pictures})
    provenance = _read_provenance(folder)
    conventions, settings = _mapping(provenance, "conventions", folder), _mapping(provenance, "settings", folder)
    env = _mapping(settings, "env", folder)
    suites = {row.suite for row in rows}
    return Description(
        fps=fps,
        robot_type=robot_type,
        action=action,
        state=state,
        cameras=cameras,
        episodes=tuple(rows),
        places=tuple(places),
        suite=suites.pop() if len(suites) == 1 else None,
        mirrored_images=conventions.get("mirrored_images"),
        env_id=env.get("id"),
        env_kwargs=env.get("kwargs", {}),
        actions_as_played=conventions.get("actions") == layout.AS_PLAYED,
    )


def _read_info(folder: Path) -> dict[str, Any]:
    file = folder / layout.INFO
    try:
        info = json.loads(file.read_text(encoding="utf-8"))
        version = str(info["codebase_version"])
    except (FileNotFoundError, NotADirectoryError):
        begun = (folder / layout.PROVENANCE).exists()
        why = "no episode is complete yet" if begun else f"it has no {layout.INFO}"
        raise ValueError(f"{folder} is not a dataset of demonstrations: {why}") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{file} is damaged ({error})") from None
    if version.partition(".")[0] not in ("v2", "v3"):
        raise ValueError(f"{folder} has LeRobot's format {version}; v2.0, v2.1 and v3 are read")
    return info


def _vector(features: Mapping[str, Any], names: tuple[str, ...]) -> Vector | None:
    name = next((name for name in names if name in features), None)
    return None if name is None else Vector(name, int(features[name]["shape"][0]))


def _picture_shape(feature: Mapping[str, Any]) -> tuple[int, int, int]:
    """(H, W, 3) of the pictures as they are read, whichever way round the feature is written down, and of whatever colours."""
    shape = tuple(feature["shape"])
    if len(shape) not in (2, 3) or not all(isinstance(size, int) and 0 < size <= _LARGEST_PICTURE for size in shape):
        raise ValueError(f"pictures have the shape {shape}")
    first, second, third = shape if len(shape) == 3 else (*shape, 1)
    names = [str(name) for name in feature.get("names") or ()]
    channels_first = names[0].lower().startswith("c") if len(names) == 3 else first in _CHANNELS and third not in _CHANNELS
    return (second, third, 3) if channels_first else (first, second, 3)


_CHANNELS = (1, 3, 4)
_LARGEST_PICTURE = 1 << 14
"""Pixels of a side."""
_Episodes = tuple[list[DemonstratedEpisode], list[EpisodePlace]]


def _version_3(folder: Path, info: Mapping[str, Any], videos: list[str]) -> _Episodes:
    wanted = {"tasks", "length", "dataset_from_index", "data/chunk_index", "data/file_index", "episode_index", *_ORIGIN}
    wanted |= {f"videos/{column}/{name}" for column in videos for name in ("chunk_index", "file_index", "from_timestamp")}
    rows: list[dict[str, Any]] = []
    for file in sorted((folder / "meta/episodes").glob("*/*.parquet")):
        rows += read_columns(file, [name for name in column_names(file) if name in wanted])
    _check_count(folder, len(rows), info)
    rows = sorted(rows, key=lambda row: row["episode_index"])[: info["total_episodes"]]
    episodes, places = [], []
    begins: dict[Path, int] = {}
    for index, row in enumerate(rows):
        file = folder / info["data_path"].format(chunk_index=row["data/chunk_index"], file_index=row["data/file_index"])
        begin = begins.setdefault(file, row["dataset_from_index"])
        in_videos = {}
        for column in videos:
            at = {name: row[f"videos/{column}/{name}"] for name in ("chunk_index", "file_index")}
            video = folder / info["video_path"].format(video_key=column, **at)
            in_videos[column] = VideoPlace(video, row[f"videos/{column}/from_timestamp"])
        places.append(EpisodePlace(file, row["dataset_from_index"] - begin, in_videos))
        origin = {name: row.get(name) for name in _ORIGIN}
        episodes.append(DemonstratedEpisode(index=index, task=row["tasks"][0], length=row["length"], **origin))
    return episodes, places


def _version_2(folder: Path, info: Mapping[str, Any], videos: list[str]) -> _Episodes:
    rows = sorted(_json_lines(folder / "meta/episodes.jsonl"), key=lambda row: row["episode_index"])
    _check_count(folder, len(rows), info)
    episodes, places = [], []
    for index, row in enumerate(rows[: info["total_episodes"]]):
        number = row["episode_index"]
        at = {"episode_chunk": number // info["chunks_size"], "episode_index": number}
        in_videos = {column: VideoPlace(folder / info["video_path"].format(video_key=column, **at), 0.0) for column in videos}
        places.append(EpisodePlace(folder / info["data_path"].format(**at), 0, in_videos))
        episodes.append(DemonstratedEpisode(index=index, task=row["tasks"][0], length=row["length"]))
    return episodes, places


def _json_lines(file: Path) -> Iterator[dict[str, Any]]:
    try:
        for line in file.read_text(encoding="utf-8").splitlines():
            yield json.loads(line)
    except (OSError, ValueError) as error:
        raise ValueError(f"{file} is missing or damaged ({error})") from None


def _check_count(folder: Path, found: int, info: Mapping[str, Any]) -> None:
    if found < info["total_episodes"]:
        raise ValueError(f"{folder} is half-written: {layout.INFO} counts {info['total_episodes']} episodes, {found} are there")


def _check_files(folder: Path, episodes: list[DemonstratedEpisode], places: list[EpisodePlace], columns: set[str]) -> None:
    """Refuse a dataset whose files are not all there, as long as they should be."""
    ends: dict[Path, int] = {}
    for episode, place in zip(episodes, places, strict=True):
        ends[place.file] = max(ends.get(place.file, 0), place.first_row + episode.length)
    for file, end in ends.items():
        rows, there = count_rows(file)
        if rows < end:
            raise ValueError(f"{folder} is half-written: {file.relative_to(folder)} has {rows} rows, not {end}")
        if missing := columns - there:
            name = file.relative_to(folder)
            raise ValueError(f"{folder} is damaged: {layout.INFO} names the column {min(missing)}, {name} does not have it")
    for place in places:
        for video in place.videos.values():
            if not video.file.exists():
                raise ValueError(f"{folder} is half-written: {video.file.relative_to(folder)} is missing")


def _mapping(of: Mapping[str, Any], name: str, folder: Path) -> Mapping[str, Any]:
    """A part of the provenance; empty where there is none."""
    value = of.get(name) or {}
    if not isinstance(value, dict):
        raise ValueError(f"{folder / layout.PROVENANCE} is damaged: {name} is {value!r}")
    return value


def _read_provenance(folder: Path) -> dict[str, Any]:
    """Ours; empty for a dataset of others."""
    file = folder / layout.PROVENANCE
    if not file.exists():
        return {}
    try:
        return dict(json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise ValueError(f"{file} is damaged ({error})") from None
