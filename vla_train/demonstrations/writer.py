"""Writes demonstrations in LeRobot's format, one after the other.

    append: data file -> row of the episode -> statistics, tasks -> info.json

Invariant: each file is replaced in one step, in this order, so a folder whose writer was killed at any moment opens with all
episodes that its info.json counts; and a writer that goes on there ends with the bytes of one that was never interrupted.
What counts as written is the rows of episodes: a data file may be one episode ahead, and is cut back.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vla_train.demonstrations import layout
from vla_train.demonstrations.feature_statistics import NAMES, combined, number_statistics, picture_statistics
from vla_train.demonstrations.layout import Features
from vla_train.demonstrations.parquet import (
    encode_frames,
    encode_rows,
    encode_tasks,
    read_row_groups,
    read_rows,
    read_vectors,
    require_pyarrow,
)
from vla_train.demonstrations.pictures import EncodedPictures
from vla_train.errors import RunError
from vla_train.files import WRITING, replace_file

_GROWTH = 1.1

FILE_BYTES = 16 << 20
"""A data file of this size takes no further episode. The last one is written anew with each episode: this bounds the work."""

_ROW_TYPES = {
    "episode_index": "int64",
    "tasks": "list<string>",
    "length": "int64",
    "dataset_from_index": "int64",
    "dataset_to_index": "int64",
    "data/chunk_index": "int64",
    "data/file_index": "int64",
    "meta/episodes/chunk_index": "int64",
    "meta/episodes/file_index": "int64",
}
_ORIGIN_TYPES = {
    "success": "bool",
    "suite": "string",
    "task_id": "int64",
    "init_state_id": "int64",
    "seed": "int64",
    "attempt": "int64",
}
"""Columns of our own."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Origin:
    """Where an episode comes from."""

    suite: str | None
    task_id: int
    init_state_id: int
    """-1 where the env drew its start from `seed`."""
    seed: int
    """Of the env's reset and of the expert."""
    attempt: int
    """Number of the attempt at this task, from 0."""
    success: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Demonstration:
    """One episode of T steps: row t is what was seen before action t, and that action."""

    instruction: str
    actions: np.ndarray
    """(T, A) float32."""
    states: np.ndarray | None
    """(T, D) float32."""
    pictures: Mapping[str, EncodedPictures]
    """By camera."""
    origin: Origin


class DatasetWriter:
    """A dataset that grows.

    Args:
        folder: New, empty, or begun by a writer with the same features and provenance.
        features: What a frame holds.
        provenance: JSON data that makes the dataset the one it is: settings, versions, conventions. Kept in
            meta/provenance.json.

    Raises:
        ValueError: The folder holds something else, or a dataset of another provenance; nothing was written.
        ImportError: pyarrow is not installed.
        RunError: The folder cannot be written to.
    """

    def __init__(self, folder: Path, *, features: Features, provenance: Mapping[str, Any]) -> None:
        require_pyarrow()
        self._folder = folder
        self._features = features
        self._columns = features.to_json()
        self._provenance = json.loads(json.dumps(provenance))
        is_new = check_folder(folder, self._provenance)
        self._rows: list[dict[str, Any]] = [] if is_new else list(_read_rows(folder))
        self._numbers: list[dict[str, np.ndarray]] = []
        """Columns that are no pictures, of each episode."""
        self._described = 0
        """Episodes in stats.json."""
        if is_new:
            self._write(layout.PROVENANCE, _json(self._provenance))
        elif self._rows:
            self._numbers = self._read_numbers()
            self._count()

    @property
    def origins(self) -> tuple[Origin, ...]:
        """Of the episodes written so far, in their order."""
        return tuple(Origin(**{name: row[name] for name in _ORIGIN_TYPES}) for row in self._rows)

    @property
    def lengths(self) -> tuple[int, ...]:
        """Steps of each episode."""
        return tuple(row["length"] for row in self._rows)

    @property
    def instructions(self) -> dict[int, str]:
        """By task id."""
        return {row["task_id"]: row["tasks"][0] for row in self._rows}

    @property
    def num_frames(self) -> int:
        """Of all episodes."""
        return self._rows[-1]["dataset_to_index"] if self._rows else 0

    def append(self, demonstration: Demonstration) -> None:
        """Write one more episode.

        Raises:
            RunError: It cannot be written; those before it are as they were.
        """
        columns = self._frames(demonstration)
        number, before = self._data_file()
        place = layout.place_of_file(number)
        content = encode_frames(before, columns, features=self._columns)
        self._write(layout.DATA.format(**place), content)
        row = self._row(demonstration, columns, place)
        in_file = [held for held in self._rows if _file_number(held) == number]
        content = encode_rows([*in_file, row], types=_ROW_TYPES | _ORIGIN_TYPES | self._statistics_types())
        self._write(layout.EPISODES.format(**place), content)
        self._rows.append(row)
        self._numbers.append(_numbers_of(columns))
        if len(self._rows) >= self._described * _GROWTH:
            self._describe()
        self._count()

    def close(self) -> None:
        """Bring the statistics up to date.

        Raises:
            RunError: They cannot be written.
        """
        if self._rows:
            self._describe()

    def _frames(self, demonstration: Demonstration) -> dict[str, Any]:
        length = len(demonstration.actions)
        ends = np.arange(length) == length - 1
        columns: dict[str, Any] = {
            f"{layout.IMAGES}{name}": pictures.files for name, pictures in demonstration.pictures.items()
        }
        if demonstration.states is not None:
            columns[layout.STATE] = np.asarray(demonstration.states, np.float32)
        columns |= {
            layout.ACTION: np.asarray(demonstration.actions, np.float32),
            layout.DONE: ends,
            layout.SUCCESS: ends & demonstration.origin.success,
            "timestamp": (np.arange(length) / self._features.fps).astype(np.float32),
            "frame_index": np.arange(length),
            "episode_index": np.full(length, len(self._rows)),
            "index": self.num_frames + np.arange(length),
            "task_index": np.full(length, self._task_index(demonstration.instruction)),
        }
        shapes = {name: pictures.shape for name, pictures in demonstration.pictures.items()}
        assert columns.keys() == self._columns.keys(), f"{sorted(columns)} instead of {sorted(self._columns)}"
        assert shapes == dict(self._features.images), f"pictures {shapes} instead of {self._features.images}"
        assert all(len(column) == length for column in columns.values())
        return columns

    def _task_index(self, instruction: str) -> int:
        instructions = self._instructions()
        return instructions.index(instruction) if instruction in instructions else len(instructions)

    def _instructions(self) -> list[str]:
        return list(dict.fromkeys(row["tasks"][0] for row in self._rows))

    def _data_file(self) -> tuple[int, tuple[Path, int] | None]:
        """Number of the file that takes the next episode, and what of it there is."""
        if not self._rows:
            return 0, None
        number = _file_number(self._rows[-1])
        num_episodes = sum(_file_number(row) == number for row in self._rows)
        file = self._folder / layout.DATA.format(**layout.place_of_file(number))
        is_full = sum(group.num_bytes for group in read_row_groups(file)[:num_episodes]) >= FILE_BYTES
        return (number + 1, None) if is_full else (number, (file, num_episodes))

    def _row(self, demonstration: Demonstration, columns: Mapping[str, Any], place: Mapping[str, int]) -> dict[str, Any]:
        length, origin = len(demonstration.actions), demonstration.origin
        statistics = {name: number_statistics(values) for name, values in _numbers_of(columns).items()}
        for name, pictures in demonstration.pictures.items():
            statistics[f"{layout.IMAGES}{name}"] = picture_statistics(pictures.histogram, num_frames=length)
        return {
            "episode_index": len(self._rows),
            "tasks": [demonstration.instruction],
            "length": length,
            "dataset_from_index": self.num_frames,
            "dataset_to_index": self.num_frames + length,
            **{f"{kind}/{name}": index for kind in ("data", "meta/episodes") for name, index in place.items()},
            **{name: getattr(origin, name) for name in _ORIGIN_TYPES},
            **{f"stats/{key}/{name}": of[name] for key, of in statistics.items() for name in NAMES},
        }

    def _statistics_types(self) -> dict[str, str]:
        types: dict[str, str] = {}
        for key, feature in self._columns.items():
            depth = 3 if feature["dtype"] == "image" else 1
            numbers = "list<" * depth + "double" + ">" * depth
            types |= {f"stats/{key}/{name}": "list<int64>" if name == "count" else numbers for name in NAMES}
        return types

    def _read_numbers(self) -> list[dict[str, np.ndarray]]:
        """Numbers of the episodes that are there."""
        by_file: dict[int, list[dict[str, Any]]] = {}
        for row in self._rows:
            by_file.setdefault(_file_number(row), []).append(row)
        numbers = []
        for number, rows in by_file.items():
            file = self._folder / layout.DATA.format(**layout.place_of_file(number))
            columns = {
                name: read_vectors(file, name, dim=feature["shape"][0])
                for name, feature in self._columns.items()
                if feature["dtype"] != "image"
            }
            begin = 0
            for row in rows:
                span = slice(begin, begin + row["length"])
                numbers.append({name: column[span] for name, column in columns.items()})
                begin = span.stop
        return numbers

    def _describe(self) -> None:
        """Write the statistics of all episodes: longer work with each, so it is not done after every one."""
        statistics = {
            name: number_statistics(np.concatenate([numbers[name] for numbers in self._numbers])) for name in self._numbers[0]
        }
        for camera in self._features.images:
            key = f"{layout.IMAGES}{camera}"
            statistics[key] = combined([{name: row[f"stats/{key}/{name}"] for name in NAMES} for row in self._rows])
        self._write(layout.STATS, _json(statistics))
        self._described = len(self._rows)

    def _count(self) -> None:
        """Write what there is: with this an episode counts for readers."""
        instructions = self._instructions()
        info = {
            "codebase_version": layout.VERSION,
            "robot_type": self._features.robot_type,
            "total_episodes": len(self._rows),
            "total_frames": self.num_frames,
            "total_tasks": len(instructions),
            "chunks_size": layout.FILES_PER_CHUNK,
            "data_files_size_in_mb": FILE_BYTES >> 20,
            "video_files_size_in_mb": 200,
            "fps": self._features.fps,
            "splits": {"train": f"0:{len(self._rows)}"},
            "data_path": layout.DATA,
            "video_path": None,
            "features": self._columns,
        }
        self._write(layout.TASKS, encode_tasks(instructions))
        self._write(layout.INFO, _json(info))

    def _write(self, name: str, content: bytes) -> None:
        try:
            replace_file(self._folder / name, content)
        except OSError as error:
            raise RunError(
                f"{self._folder} cannot be written to ({error.strerror or error}); complete episodes there: {len(self._rows)}; "
                "the same command goes on after them"
            ) from error


def check_folder(folder: Path, provenance: Mapping[str, Any]) -> bool:
    """Whether a folder is free for a new dataset; if not, it holds one of this provenance.

    Args:
        folder: Need not exist.
        provenance: JSON data, or the part of it that is known yet.

    Raises:
        ValueError: It holds something else, or a dataset of another provenance; the message names the difference.
    """
    file = folder / layout.PROVENANCE
    if not file.exists():
        files = [path for path in folder.rglob("*") if path.is_file() and path.suffix != WRITING] if folder.exists() else []
        if files:
            raise ValueError(f"{folder} holds something else ({files[0].relative_to(folder)}): choose another output")
        return True
    try:
        held = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{file} is damaged ({error}): choose another output, or delete {folder}") from None
    for name, before, now in _differences(held, json.loads(json.dumps(provenance)), ""):
        raise ValueError(
            f"{folder} holds demonstrations with {name} {json.dumps(before)}, not {json.dumps(now)}: choose another output"
        )
    return False


def _differences(held: Any, asked: Any, name: str) -> Iterator[tuple[str, Any, Any]]:
    if isinstance(held, dict) and isinstance(asked, dict):
        for key, value in asked.items():
            yield from _differences(held.get(key), value, f"{name}.{key}" if name else key)
    elif held != asked:
        yield name, held, asked


def _read_rows(folder: Path) -> Iterator[dict[str, Any]]:
    for file in sorted((folder / "meta/episodes").glob("*/*.parquet")):
        yield from read_rows(file)


def _file_number(row: Mapping[str, Any]) -> int:
    return row["data/chunk_index"] * layout.FILES_PER_CHUNK + row["data/file_index"]


def _numbers_of(columns: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The columns that are no pictures, each (T, D)."""
    arrays = {name: column for name, column in columns.items() if isinstance(column, np.ndarray)}
    return {name: array.reshape(len(array), -1) for name, array in arrays.items()}


def _json(data: Any) -> bytes:
    return (json.dumps(data, indent=1) + "\n").encode()
