"""Reads demonstrations in LeRobot's format: v3 and the older v2, whoever wrote them.

    actions, states   whole columns of an episode, read when first asked for
    images            frames of any episodes: pictures stay in memory as they were decoded where there is room for all of
                      them, else encoded, those of recently used episodes; of a video, the decoded frames of an episode

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

from vla_train.demonstrations.description import DemonstratedEpisode, EpisodePlace, Vector, describe
from vla_train.demonstrations.parquet import read_pictures, read_row_groups, read_vectors
from vla_train.demonstrations.pictures import decode_picture
from vla_train.demonstrations.videos import decode_video


@dataclass(frozen=True, slots=True)
class _Decoded:
    """The frames of a camera, of all episodes in their order, as far as they were read."""

    frames: np.ndarray
    """(steps, H, W, 3)."""
    known: np.ndarray
    """(steps,) which of them."""


@dataclass(frozen=True, slots=True)
class _Held:
    """Encoded pictures of a row group, or decoded frames of an episode's video."""

    pictures: Any
    num_bytes: int


class DemonstrationDataset:
    """A folder of demonstrations. Threads may read side by side.

    Args:
        folder: Holds `meta` and `data`.
        memory_bytes: Most bytes of pictures that are kept; those that stay decoded take half of them at most.

    Raises:
        ValueError: It is no dataset, of a version that is not read, half-written, or without actions; one line says which.
        ImportError: pyarrow is not installed.
    """

    def __init__(self, folder: Path | str, *, memory_bytes: int = 4 << 30) -> None:
        self.folder = Path(folder)
        description = describe(self.folder)
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
        self._lengths = np.array([episode.length for episode in self.episodes])
        self._begins = np.cumsum(self._lengths) - self._lengths
        """Which frame of all is an episode's first."""
        pictures = [key for key, camera in description.cameras.items() if not camera.is_video]
        frame_bytes = sum(math.prod(self.image_shapes[key]) for key in pictures)
        self._decoded: dict[str, _Decoded] = {}
        """By camera; none where there is no room for all."""
        if frame_bytes * self.num_steps <= memory_bytes // 2:
            for key in pictures:  # memory that is not written to is not taken
                frames = self._room(self.num_steps, key)
                self._decoded[key] = _Decoded(frames, np.zeros(self.num_steps, bool))

    @property
    def num_steps(self) -> int:
        """Of all episodes."""
        return int(self._lengths.sum())

    @property
    def stays_decoded(self) -> bool:
        """Whether each picture is decoded once; of videos, it is seen while they are read."""
        return all(key in self._decoded or camera.is_video for key, camera in self._description.cameras.items())

    def actions(self, episode: int) -> np.ndarray:
        """(T, A) float32 as stored."""
        return self._numbers(episode, self._description.action)

    def states(self, episode: int) -> np.ndarray | None:
        """(T, D) float32 as stored; None where the dataset has no state."""
        state = self._description.state
        return None if state is None else self._numbers(episode, state)

    def images(self, episode: int | np.ndarray, key: str, steps: Sequence[int] | np.ndarray) -> np.ndarray:
        """(n, H, W, 3) uint8 of one camera at these steps: of one episode, or of n, one for each step.

        Raises:
            ValueError: There is no such camera, episode or step, or a picture is damaged or of another size than the rest.
        """
        if key not in self._description.cameras:
            raise ValueError(f"{self.folder} has no images {key!r}, only {', '.join(self.image_keys) or 'none'}")
        wanted = np.asarray(steps)
        if wanted.size and wanted.dtype.kind not in "iu":
            raise ValueError(f"steps are integers, got {wanted.dtype}")
        episodes, places = np.broadcast_arrays(episode, wanted.astype(np.int64))
        for number in np.unique(episodes).tolist():
            self._require_episode(number)
        for wrong in np.flatnonzero((places < 0) | (places >= self._lengths[episodes]))[:1]:
            last = self._lengths[episodes[wrong]] - 1
            raise ValueError(f"episode {episodes[wrong]} has the steps 0..{last}, got {places[wrong]}")
        if self._description.cameras[key].is_video:
            return self._from_videos(episodes, key, places)
        if key in self._decoded:
            return self._from_memory(episodes, key, places)
        frames = self._room(len(places), key)
        for number, place in enumerate(zip(episodes.tolist(), places.tolist(), strict=True)):
            frames[number] = self._frame(key, *place)
        return frames

    def _from_memory(self, episodes: np.ndarray, key: str, steps: np.ndarray) -> np.ndarray:
        decoded = self._decoded[key]
        numbers = self._begins[episodes] + steps
        for new in np.flatnonzero(~decoded.known[numbers]):  # two threads may both read a frame: they find the same
            decoded.frames[numbers[new]] = self._frame(key, int(episodes[new]), int(steps[new]))
            decoded.known[numbers[new]] = True
        return decoded.frames.take(numbers, axis=0)

    def _from_videos(self, episodes: np.ndarray, key: str, steps: np.ndarray) -> np.ndarray:
        frames = self._room(len(steps), key)
        for episode in np.unique(episodes).tolist():
            own = episodes == episode
            frames[own] = self._video(episode, key)[steps[own]]
        return frames

    def _room(self, count: int, key: str) -> np.ndarray:
        """For so many frames."""
        height, width = self.image_shapes[key][:2]
        return np.empty((count, height, width, 3), np.uint8)

    def _require_episode(self, episode: int) -> None:
        if not 0 <= episode < len(self.episodes):
            raise ValueError(f"{self.folder} has the episodes 0..{len(self.episodes) - 1}, got {episode}")

    def _numbers(self, episode: int, vector: Vector) -> np.ndarray:
        self._require_episode(episode)
        place = self._description.places[episode]
        key = place.file, vector.column
        with self._lock:
            if key not in self._columns:
                self._columns[key] = read_vectors(place.file, vector.column, dim=vector.dim)
            numbers = self._columns[key][place.first_row : place.first_row + self.episodes[episode].length]
        if len(numbers) != self.episodes[episode].length:
            raise ValueError(f"{place.file} ends before episode {episode} does: it is half-written")
        return numbers

    def _frame(self, key: str, episode: int, step: int) -> np.ndarray:
        """(H, W, 3)."""
        place = self._description.places[episode]
        try:
            frame = decode_picture(self._picture(place, self._description.cameras[key].column, place.first_row + step))
        except ValueError as error:
            raise ValueError(f"{self.folder}: {error}") from None
        self._require_size(frame.shape, key)
        return frame

    def _require_size(self, shape: tuple[int, ...], key: str) -> None:
        (height, width), (wanted_height, wanted_width) = shape[-3:-1], self.image_shapes[key][:2]
        if (height, width) != (wanted_height, wanted_width):
            raise ValueError(
                f"{self.folder}: pictures {key!r} have {height} x {width} pixels, where meta/info.json says "
                f"{wanted_height} x {wanted_width}"
            )

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

    def _video(self, episode: int, key: str) -> np.ndarray:
        """(T, H, W, 3) of a whole episode."""
        column = self._description.cameras[key].column
        place = self._description.places[episode].videos[column]
        held = place.file, column, episode
        with self._lock:
            frames = self._recall(held)
            if frames is None:
                length = self.episodes[episode].length
                frames = decode_video(place.file, begin_s=place.begin_s, num_frames=length, fps=self.fps)
                self._require_size(frames.shape, key)
                self._remember(held, frames, frames.nbytes)
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
