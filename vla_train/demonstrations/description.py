"""What a dataset folder says of itself: its columns, its episodes, and where they lie. Everything is checked before it is read.

Versions: v3 (several episodes to a file, tables in parquet) and v2.0 / v2.1 (one file per episode, tables as JSON lines).
"""

import itertools
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vla_train.demonstrations import layout
from vla_train.demonstrations.parquet import column_names, count_rows, read_columns, read_integers, require_pyarrow

_ACTIONS = (layout.ACTION, "actions")
_STATES = (layout.STATE, "state")
_ORIGIN = ("success", "suite", "task_id", "init_state_id")
_WHOSE = ("episode_index", "frame_index")
"""Columns by which a row says whose it is."""


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
    end_s: float | None = None
    """Time after the last one; None where the dataset does not say."""


@dataclass(frozen=True, slots=True)
class EpisodePlace:
    """Where its frames lie."""

    number: int
    """What rows call the episode."""
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
    _check_videos(folder, rows, places, fps=fps)
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
    whole = ["dataset_from_index", "data/chunk_index", "data/file_index"]
    whole += [f"videos/{column}/{name}" for column in videos for name in ("chunk_index", "file_index")]
    wanted = {"episode_index", "tasks", "length", *_ORIGIN, *whole}
    wanted |= {f"videos/{column}/{name}" for column in videos for name in ("from_timestamp", "to_timestamp")}
    rows: list[dict[str, Any]] = []
    for file in sorted((folder / "meta/episodes").glob("*/*.parquet")):
        rows += read_columns(file, [name for name in column_names(file) if name in wanted])
    rows, episodes = _checked(folder, rows, info, whole=whole)
    places = []
    begins: dict[Path, int] = {}
    for row in rows:
        file = folder / info["data_path"].format(chunk_index=row["data/chunk_index"], file_index=row["data/file_index"])
        begin = begins.setdefault(file, row["dataset_from_index"])
        in_videos = {}
        for column in videos:
            at = {name: row[f"videos/{column}/{name}"] for name in ("chunk_index", "file_index")}
            begin_s, end_s = float(row[f"videos/{column}/from_timestamp"]), row.get(f"videos/{column}/to_timestamp")
            in_videos[column] = VideoPlace(folder / info["video_path"].format(video_key=column, **at), begin_s, end_s)
        places.append(EpisodePlace(row["episode_index"], file, row["dataset_from_index"] - begin, in_videos))
    return episodes, places


def _version_2(folder: Path, info: Mapping[str, Any], videos: list[str]) -> _Episodes:
    rows, episodes = _checked(folder, list(_json_lines(folder / "meta/episodes.jsonl")), info)
    places = []
    for row in rows:
        number = row["episode_index"]
        at = {"episode_chunk": number // info["chunks_size"], "episode_index": number}
        in_videos = {column: VideoPlace(folder / info["video_path"].format(video_key=column, **at), 0.0) for column in videos}
        places.append(EpisodePlace(number, folder / info["data_path"].format(**at), 0, in_videos))
    return episodes, places


def _checked(
    folder: Path, rows: list[dict[str, Any]], info: Mapping[str, Any], *, whole: Sequence[str] = ()
) -> tuple[list[dict[str, Any]], list[DemonstratedEpisode]]:
    """The rows of as many episodes as the dataset counts, in their order, with whole numbers; and what they say."""
    try:
        for row, name in itertools.product(rows, ("episode_index", *whole)):
            row[name] = _whole(row, name)
        rows = sorted(rows, key=lambda row: row["episode_index"])
        for row, following in itertools.pairwise(rows):
            if row["episode_index"] == following["episode_index"]:
                raise ValueError(f"episode {row['episode_index']} is described twice")
        counted = rows[: info["total_episodes"]]
        episodes = [_episode(index, row) for index, row in enumerate(counted)]
    except ValueError as error:
        raise ValueError(f"{folder} is damaged: {error}") from None
    if len(counted) < info["total_episodes"]:
        counts = f"{layout.INFO} counts {info['total_episodes']} episodes, {len(counted)} are there"
        raise ValueError(f"{folder} is half-written: {counts}")
    return counted, episodes


def _episode(index: int, row: Mapping[str, Any]) -> DemonstratedEpisode:
    tasks, length = row["tasks"], row["length"]
    told = {tasks} if isinstance(tasks, str) else set(tasks)
    if len(told) != 1 or not all(isinstance(task, str) and task for task in told):
        raise ValueError(f"episode {index} has the tasks {tasks!r}, where one instruction for all of it is read")
    if length is None or _whole(row, "length") < 1:
        raise ValueError(f"episode {index} has the length {length!r}")
    return DemonstratedEpisode(index=index, task=told.pop(), length=_whole(row, "length"), **_origin(row))


def _origin(row: Mapping[str, Any]) -> dict[str, Any]:
    """What a dataset may say of an episode, and of what kind it is."""
    success, suite = row.get("success"), row.get("suite")
    if success not in (None, False, True):  # 0 and 1 are those
        raise ValueError(f"success is {success!r}, where true and false are read")
    if not isinstance(suite, str | None):
        raise ValueError(f"suite is {suite!r}, and no name")
    numbers = {name: None if row.get(name) is None else _whole(row, name) for name in ("task_id", "init_state_id")}
    return {"success": None if success is None else bool(success), "suite": suite, **numbers}


def _whole(row: Mapping[str, Any], name: str) -> int:
    """A number of a table, which pandas may have made a float."""
    value = row[name]
    if isinstance(value, bool) or not isinstance(value, int | float) or value != value // 1:
        raise ValueError(f"{name} is {value!r}, and no whole number")
    return int(value)


def _json_lines(file: Path) -> Iterator[dict[str, Any]]:
    try:
        for line in file.read_text(encoding="utf-8").split("\n"):  # `splitlines` knows more ends, which JSON may hold
            if line.strip():
                yield json.loads(line)
    except (OSError, ValueError) as error:
        raise ValueError(f"{file} is missing or damaged ({error})") from None


def _check_files(folder: Path, episodes: list[DemonstratedEpisode], places: list[EpisodePlace], columns: set[str]) -> None:
    """Refuse a dataset whose files are not all there, as long as they should be, with the rows where they should be."""
    held: dict[Path, list[int]] = {}
    for episode, place in zip(episodes, places, strict=True):
        held.setdefault(place.file, []).append(episode.index)
    for file, indices in held.items():
        name, (rows, there) = file.relative_to(folder), count_rows(file)
        end = max(places[index].first_row + episodes[index].length for index in indices)
        if rows < end:
            raise ValueError(f"{folder} is half-written: {name} has {rows} rows, not {end}")
        if missing := columns - there:
            raise ValueError(f"{folder} is damaged: {layout.INFO} names the column {min(missing)}, {name} does not have it")
        if there.issuperset(_WHOSE):
            told = np.stack([read_integers(file, column) for column in _WHOSE], axis=1)
            wrong = _misplaced(told, [(places[index], episodes[index].length) for index in indices])
            if wrong is not None:
                whose = "is of another episode than the dataset says, or of another place in it"
                raise ValueError(f"{folder} is damaged: row {wrong} of {name} {whose}")


def _misplaced(told: np.ndarray, held: Sequence[tuple[EpisodePlace, int]]) -> int | None:
    """The first row of a file that is another one than episodes of these places and lengths want; None if none is.

    Args:
        told: (rows, 2) episode and frame, as each row says.
    """
    of_none = np.ones(len(told), bool)
    for place, length in held:
        if place.first_row < 0:
            return 0
        own = slice(place.first_row, place.first_row + length)
        wrong = (told[own] != np.stack([np.full(length, place.number), np.arange(length)], axis=1)).any(axis=1)
        if wrong.any():
            return place.first_row + int(wrong.argmax())
        of_none[own] = False
    left = np.flatnonzero(of_none & np.isin(told[:, 0], [place.number for place, _ in held]))
    return int(left[0]) if len(left) else None


def _check_videos(folder: Path, episodes: list[DemonstratedEpisode], places: list[EpisodePlace], *, fps: float) -> None:
    """Refuse a dataset whose videos are not all there, or shorter than their episodes as far as it says so."""
    for episode, place in zip(episodes, places, strict=True):
        for video in place.videos.values():
            name = video.file.relative_to(folder)
            if not video.file.exists():
                raise ValueError(f"{folder} is half-written: {name} is missing")
            if video.end_s is not None and (video.end_s - video.begin_s) * fps < episode.length - 0.5:
                raise ValueError(
                    f"{folder} is damaged: episode {episode.index} has {episode.length} frames, but only "
                    f"{video.begin_s:g} s to {video.end_s:g} s of {name}"
                )


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
