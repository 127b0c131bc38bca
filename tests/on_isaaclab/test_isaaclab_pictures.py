"""Pictures of converted tasks on Isaac Lab beside MuJoCo's OpenGL, and a file for each that shows both side by side."""

import numpy as np
import pytest
from converted import FOLDER, TASKS, begin, make, name_of, reference
from PIL import Image

CAMERAS = {"agentview": "image", "wrist": "wrist_image"}


def psnr(one: np.ndarray, other: np.ndarray) -> float:
    """Decibels."""
    return float(10.0 * np.log10(255.0**2 / np.mean((one.astype(float) - other.astype(float)) ** 2)))


@pytest.mark.parametrize("task", TASKS, ids=name_of)
def test_pictures_look_like_mujocos(task: tuple[str, int]):
    env = make(task, cameras=tuple(CAMERAS), quality="match")
    observation, expected = begin(env, 0), reference(task)
    env.close()
    for camera, key in CAMERAS.items():
        drawn, wanted = observation[key], expected[f"rest.first_{camera}"]
        side_by_side = Image.fromarray(np.concatenate([wanted, drawn[0]], axis=1))
        side_by_side.save(FOLDER / f"picture_{name_of(task)}_{camera}.png")
        similarities = [psnr(picture, wanted) for picture in drawn]
        print(f"{name_of(task)} {camera}: PSNR {similarities[0]:.1f} dB")
        assert min(similarities) > 21.0
        assert np.ptp(similarities) < 0.1
