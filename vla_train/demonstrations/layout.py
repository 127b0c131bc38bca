"""LeRobot's dataset format v3, as far as names go: which files there are, and which columns.

    meta/info.json                                  version, fps, features, totals
    meta/stats.json                                 statistics of every feature
    meta/tasks.parquet                              instruction -> task_index
    meta/episodes/chunk-000/file-000.parquet        one row per episode: where it lies, its own statistics, its origin
    data/chunk-000/file-000.parquet                 one row per frame, images as PNG bytes; several episodes follow each other
    meta/provenance.json                            ours: what made the episodes; LeRobot passes it over

Knows no library.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

VERSION = "v3.0"
INFO = "meta/info.json"
STATS = "meta/stats.json"
TASKS = "meta/tasks.parquet"
PROVENANCE = "meta/provenance.json"
DATA = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
EPISODES = "meta/episodes/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
FILES_PER_CHUNK = 1000

STATE = "observation.state"
ACTION = "action"
IMAGES = "observation.images."
"""Before the name of a camera."""
AS_PLAYED = "as the env takes them"
"""What our provenance says of actions."""
DONE, SUCCESS = "next.done", "next.success"

_STATE_NAMES = ("x", "y", "z", "axis_angle1", "axis_angle2", "axis_angle3", "gripper1", "gripper2")
_ACTION_NAMES = ("x", "y", "z", "axis_angle1", "axis_angle2", "axis_angle3", "gripper")


@dataclass(frozen=True, kw_only=True, slots=True)
class Features:
    """What a frame holds."""

    fps: int
    """Control steps per second."""
    robot_type: str | None
    action_dim: int
    """A."""
    state_dim: int | None
    """D; None without a state."""
    images: Mapping[str, tuple[int, int, int]]
    """(H, W, 3) of each camera."""

    def to_json(self) -> dict[str, Any]:
        """`features` of info.json."""
        features: dict[str, Any] = {}
        for name, shape in self.images.items():
            names = ["height", "width", "channels"]
            features[f"{IMAGES}{name}"] = {"dtype": "image", "shape": list(shape), "names": names}
        if self.state_dim is not None:
            features[STATE] = _vector(self.state_dim, _STATE_NAMES)
        features[ACTION] = _vector(self.action_dim, _ACTION_NAMES)
        for name, dtype in SCALARS.items():
            features[name] = {"dtype": dtype, "shape": [1], "names": None}
        return features


SCALARS = {
    DONE: "bool",
    SUCCESS: "bool",
    "timestamp": "float32",
    "frame_index": "int64",
    "episode_index": "int64",
    "index": "int64",
    "task_index": "int64",
}
"""Columns of one number per frame."""


def _vector(size: int, names: tuple[str, ...]) -> dict[str, Any]:
    own = list(names) if size == len(names) else [str(index) for index in range(size)]
    return {"dtype": "float32", "shape": [size], "names": own}


def place_of_file(number: int) -> dict[str, int]:
    """Chunk and file index of the file of that number."""
    return {"chunk_index": number // FILES_PER_CHUNK, "file_index": number % FILES_PER_CHUNK}
