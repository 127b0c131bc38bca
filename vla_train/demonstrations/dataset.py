"""Reads demonstrations in LeRobot's format: v3 and the older v2, whoever wrote them.

    actions, states   whole columns of an episode, read when first asked for
    images            single frames: pictures stay in memory as they were decoded where there is room for all of them, else
                      encoded, those of recently used episodes; of a video, the decoded frames of an episode

Columns may be named as LeRobot does (`observation.images.image`, `observation.state`, `action`) or as the LIBERO sets of
others do (`image`, `state`, `actions`); pictures may be stored as video. Values are as they are stored: what they mean is told
by `conventions`.
"""

import math
import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vla_train.demonstrations.description import DemonstratedEpisode, EpisodePlace, describe
from vla_train.demonstrations.parquet import read_pictures, read_row_groups, read_vectors
from vla_train.demonstrations.pictures import decode_picture
from vla_train.demonstrations.videos import decode_video


@dataclass(frozen=True, slots=True)
class _Held:
    """Encoded pictures of a row group, or decoded frames of an episode's video."""

    pictures: Any
    num_bytes: int


class DemonstrationDataset:
    """A folder of demonstrations. Threads may read side by side.

    Args:
        folder: Holds `meta` and `data`.
        memory_bytes: Most bytes of pictures that are kept.

    Raises:
        ValueError: It is no dataset, of a version that is not read, half-written, or without actions; one line says which.
        ImportError: pyarrow is not installed.
    """

    def __init__(self, folder: Path, *, memory_bytes: int = 4 << 30) -> None:
        self.folder = folder
        description = describe(folder)
        self.fps: float = description.fps
        self.robot_type: str | None = description.robot_type
        self.action_dim: int = description.action.dim
        self.state_dim: int | None = None if description.state is None else description.state.dim
        self.image_keys: tuple[str, ...] = tuple(description.cameras)
        self.image_shapes: dict[str, tuple[int, int, int]] = {key: one.shape for key, one in description.cameras.items()}
        self.suite: str | None = description.suite
        self.mirrored_images: bool | None = description.mirrored_images
        self.env_id: str | None = description.env_id
        self.env_kwargs: dict[str, str] = dict(description.env_kwargs)
        self.actions_as_played: bool = description.actions_as_played
        self.episodes: tuple[DemonstratedEpisode, ...] = description.episodes
        self._description = description
        self._memory_bytes = memory_bytes
        self._lock = threading.Lock()
        self._columns: dict[tuple[Path, str], np.ndarray] = {}
        self._groups: dict[Path, np.ndarray] = {}
        self._held: OrderedDict[tuple[Path, str, int], _Held] = OrderedDict()
        self._held_bytes = 0
        self._decoded: dict[tuple[Path, str, int], np.ndarray] = {}
        frame_bytes = sum(math.prod(shape) for shape in self.image_shapes.values())
        self._holds_decoded = frame_bytes * self.num_steps <= memory_bytes // 2

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
        if key not in self._description.cameras:
            raise ValueError(f"{self.folder} has no images {key!r}, only {', '.join(self.image_keys) or 'none'}")
        camera = self._description.cameras[key]
        length = self.episodes[episode].length
        if len(steps) and not 0 <= min(steps) <= max(steps) < length:
            raise ValueError(f"episode {episode} has the steps 0..{length - 1}, got {min(steps)}..{max(steps)}")
        if not len(steps):
            return np.zeros((0, *camera.shape), np.uint8)
        if camera.is_video:
            return self._video(episode, camera.column)[np.asarray(steps)]
        place = self._description.places[episode]
        frames = [self._frame(place, camera.column, place.first_row + int(step)) for step in steps]
        if any(frame.shape != frames[0].shape for frame in frames):
            raise ValueError(f"{self.folder}: pictures of {key!r} differ in size")
        return np.stack(frames)

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

    def _frame(self, place: EpisodePlace, column: str, row: int) -> np.ndarray:
        """(H, W, 3) of a row of a file."""
        key = place.file, column, row
        frame = self._decoded.get(key)
        if frame is None:
            try:
                frame = decode_picture(self._picture(place, column, row))
            except ValueError as error:
                raise ValueError(f"{self.folder}: {error}") from None
            if self._holds_decoded:
                self._decoded[key] = frame
        return frame

    def _picture(self, place: EpisodePlace, column: str, row: int) -> bytes:
        with self._lock:
            if place.file not in self._groups:
                self._groups[place.file] = np.cumsum([0, *[group.num_rows for group in read_row_groups(place.file)]])
            begins = self._groups[place.file]
            group = int(np.searchsorted(begins, row, side="right")) - 1
            key = place.file, column, group
            files = self._recall(key)
            if files is None:
                files = read_pictures(place.file, column, group)
                self._remember(key, files, sum(map(len, files)))
        return files[row - int(begins[group])]

    def _video(self, episode: int, column: str) -> np.ndarray:
        """(T, H, W, 3) of a whole episode."""
        place = self._description.places[episode].videos[column]
        key = place.file, column, episode
        with self._lock:
            frames = self._recall(key)
            if frames is None:
                length = self.episodes[episode].length
                frames = decode_video(place.file, begin_s=place.begin_s, num_frames=length, fps=self.fps)
                self._remember(key, frames, frames.nbytes)
        return frames

    def _recall(self, key: tuple[Path, str, int]) -> Any:
        """What is held under a key; None if nothing is."""
        if key not in self._held:
            return None
        self._held.move_to_end(key)
        return self._held[key].pictures

    def _remember(self, key: tuple[Path, str, int], pictures: Any, num_bytes: int) -> None:
        """Hold something, and let go what was not used for longest."""
        self._held[key] = _Held(pictures, num_bytes)
        self._held_bytes += num_bytes
        while self._held_bytes > self._memory_bytes and len(self._held) > 1:
            self._held_bytes -= self._held.popitem(last=False)[1].num_bytes
