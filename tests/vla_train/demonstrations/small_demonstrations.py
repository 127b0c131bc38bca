"""Demonstrations that need no env: noise in small pictures, and numbers."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from vla_train.demonstrations.layout import Features
from vla_train.demonstrations.pictures import encode_pictures
from vla_train.demonstrations.writer import DatasetWriter, Demonstration, Origin

SIDE = 12
FEATURES = Features(fps=20, robot_type="panda", action_dim=7, state_dim=8, images={"image": (SIDE, SIDE, 3)})
PROVENANCE = {"settings": {"suite": "libero_90", "seed": 0}, "conventions": {"mirrored_images": True}}


def frames_of(number: int) -> np.ndarray:
    """(T, SIDE, SIDE, 3) uint8 of an episode."""
    return np.random.default_rng([7, number]).integers(0, 256, (length_of(number), SIDE, SIDE, 3), dtype=np.uint8)


def length_of(number: int) -> int:
    return 3 + number % 4


def demonstration(number: int) -> Demonstration:
    rng = np.random.default_rng([8, number])
    length = length_of(number)
    actions = rng.normal(size=(length, 7)).astype(np.float32)
    actions[:, -1] = np.sign(actions[:, -1])
    return Demonstration(
        instruction=("open the drawer", "close the drawer")[number % 2],
        actions=actions,
        states=rng.normal(size=(length, 8)).astype(np.float32),
        pictures={"image": encode_pictures(frames_of(number))},
        origin=Origin(
            suite="libero_90", task_id=number % 2, init_state_id=number, seed=5, attempt=number, success=number % 3 != 2
        ),
    )


def open_writer(folder: Path) -> DatasetWriter:
    return DatasetWriter(folder, features=FEATURES, provenance=PROVENANCE)


def write_dataset(folder: Path, num_episodes: int) -> Path:
    writer = open_writer(folder)
    for number in range(num_episodes):
        writer.append(demonstration(number))
    writer.close()
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    """Every file, by its path inside the folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def change_info(folder: Path, **changes: Any) -> None:
    """Let a dataset say something else of itself."""
    file = folder / "meta/info.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
