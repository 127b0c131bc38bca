"""Reads demonstrations in LeRobot's format: v3 and the older v2, whoever wrote them, with pictures inside the parquet files.

    actions, states   whole columns of an episode, read when first asked for
    images            single frames: encoded pictures of recently used episodes stay in memory, and are decoded when asked for

Columns may be named as LeRobot does (`observation.images.image`, `observation.state`, `action`) or as the LIBERO sets of
others do (`image`, `state`, `actions`). Values are as they are stored: what they mean is told by `conventions`.
"""

import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vla_train.demonstrations.description import DemonstratedEpisode, EpisodePlace, describe
from vla_train.demonstrations.parquet import read_pictures, read_row_groups, read_vectors
from vla_train.demonstrations.pictures import decode_pictures


@dataclass(frozen=True, slots=True)
class _Pictures:
    """Encoded pictures of one row group."""

    files: list[bytes]
    num_bytes: int


class DemonstrationDataset:
    """A folder of demonstrations. Threads may read side by side.

    Args:
        folder: Holds `meta` and `data`.
        memory_bytes: Most bytes of encoded pictures that are kept.

    Raises:
        ValueError: It is no dataset, of a version that is not read, half-written, or without actions; one line says which.
        ImportError: pyarrow is not installed.
    """

    def __init__(self, folder: Path, *, memory_bytes: int = 4 << 30) -> None:
        self.folder = folder
        description = describe(folder)
        self.fps: int = description.fps
        self.robot_type: str | None = description.robot_type
        self.action_dim: int = description.action.dim
        self.state_dim: int | None = None if description.state is None else description.state.dim
        self.image_keys: tuple[str, ...] = tuple(description.images)
        self.image_shapes: dict[str, tuple[int, int, int]] = {key: shape for key, (_, shape) in description.images.items()}
        self.suite: str | None = description.suite
        self.mirrored_images: bool | None = description.mirrored_images
        self.actions_as_played: bool = description.actions_as_played
        self.episodes: tuple[DemonstratedEpisode, ...] = description.episodes
        self._description = description
        self._memory_bytes = memory_bytes
        self._lock = threading.Lock()
        self._columns: dict[tuple[Path, str], np.ndarray] = {}
        self._groups: dict[Path, np.ndarray] = {}
        self._pictures: OrderedDict[tuple[Path, str, int], _Pictures] = OrderedDict()
        self._held_bytes = 0

    @property
    def num_steps(self) -> int:
        """Of all episodes."""
        return sum(episode.length for episode in self.episodes)

    def actions(self, episode: int) -> np.ndarray:
        """(T, A) float32 as stored."""
        return self._numbers(episode, self._description.action.column)

    def states(self, episode: int) -> np.ndarray | None:
        """(T, D) float32 as stored; None where the dataset has no state."""
        state = self._description.state
        return None if state is None else self._numbers(episode, state.column)

    def images(self, episode: int, key: str, steps: Sequence[int] | np.ndarray) -> np.ndarray:
        """(n, H, W, 3) uint8 of one camera at these steps.

        Raises:
            ValueError: There is no such camera or step, or a picture is damaged.
        """
        if key not in self._description.images:
            raise ValueError(f"{self.folder} has no images {key!r}, only {', '.join(self.image_keys) or 'none'}")
        column, _ = self._description.images[key]
        length = self.episodes[episode].length
        if len(steps) and not 0 <= min(steps) <= max(steps) < length:
            raise ValueError(f"episode {episode} has the steps 0..{length - 1}, got {min(steps)}..{max(steps)}")
        if not len(steps):
            return np.zeros((0, *self.image_shapes[key]), np.uint8)
        place = self._description.places[episode]
        try:
            return decode_pictures([self._picture(place, column, int(step)) for step in steps])
        except ValueError as error:
            raise ValueError(f"{self.folder}: {error}") from None

    def _numbers(self, episode: int, column: str) -> np.ndarray:
        place = self._description.places[episode]
        key = place.file, column
        with self._lock:
            if key not in self._columns:
                self._columns[key] = read_vectors(place.file, column)
            numbers = self._columns[key][place.first_row : place.first_row + self.episodes[episode].length]
        if len(numbers) != self.episodes[episode].length:
            raise ValueError(f"{place.file} ends before episode {episode} does: it is half-written")
        return numbers

    def _picture(self, place: EpisodePlace, column: str, step: int) -> bytes:
        row = place.first_row + step
        with self._lock:
            if place.file not in self._groups:
                self._groups[place.file] = np.cumsum([0, *[group.num_rows for group in read_row_groups(place.file)]])
            begins = self._groups[place.file]
            group = int(np.searchsorted(begins, row, side="right")) - 1
            key = place.file, column, group
            held = self._pictures.get(key)
            if held is None:
                files = read_pictures(place.file, column, group)
                held = self._pictures[key] = _Pictures(files, sum(map(len, files)))
                self._held_bytes += held.num_bytes
                while self._held_bytes > self._memory_bytes and len(self._pictures) > 1:
                    self._held_bytes -= self._pictures.popitem(last=False)[1].num_bytes
            else:
                self._pictures.move_to_end(key)
        return held.files[row - int(begins[group])]
