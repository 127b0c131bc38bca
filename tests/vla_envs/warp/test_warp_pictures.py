"""Pictures that Warp draws beside those of OpenGL, of the same states: one task of each suite, on the CPU of two.

A task of each suite has kernels of its own, and compiling them takes the CPU longer than all else here.
"""

import numpy as np
import pytest
from fast_envs import loaded_scene

from vla_envs.vector.cameras import drawn_cameras
from vla_envs.vector.mujoco_engine import MujocoEngine
from vla_envs.warp.device import WarpDevice
from vla_envs.warp.engine import WarpEngine

TWO_TASKS = [("libero_spatial", 0), ("libero_90", 33)]
"""Two lights, and three: too many for `fast`."""
TASKS = [*TWO_TASKS, ("libero_object", 0), ("libero_goal", 0), ("libero_10", 2)]
SIZE = 128

pytestmark = pytest.mark.usefixtures("opengl")


def psnr(mine: np.ndarray, theirs: np.ndarray) -> float:
    """Peak signal-to-noise ratio in dB of uint8 pictures."""
    return float(10 * np.log10(255**2 / np.mean((mine.astype(float) - theirs) ** 2)))


def pictures(task: tuple[str, int], quality: str, device: WarpDevice) -> tuple[np.ndarray, np.ndarray]:
    """(2, SIZE, SIZE, 3) of two initial states of a task, by Warp and by OpenGL."""
    scene, slots, cameras = loaded_scene(*task), [0, 1], drawn_cameras(("agentview",), image_size=SIZE)
    warp = WarpEngine(2, cameras=cameras, quality=quality, device=device, tensors=False)
    gl = MujocoEngine(2, cameras=cameras)
    drawn = []
    for engine in (warp, gl):
        engine.begin(slots, [scene] * 2, list(scene.scene.init_states[[0, 20]]))
        engine.draw(slots)
        drawn.append(engine.pictures()["agentview"])
        engine.close()
    return drawn[0], drawn[1]


def test_pictures_that_match_look_like_opengls(device: WarpDevice):
    decibels = {task: psnr(*pictures(task, "match", device)) for task in (TASKS if device.is_gpu else TWO_TASKS)}
    assert np.mean(list(decibels.values())) >= 24
    assert min(decibels.values()) >= 22, decibels


def test_fast_pictures_show_the_same_things_in_much_the_same_light(device: WarpDevice):
    drawn = {task: pictures(task, "fast", device) for task in TWO_TASKS}
    for mine, theirs in drawn.values():
        assert psnr(mine, theirs) > 18
        for one, other in zip(mine.astype(float), theirs.astype(float), strict=True):
            assert np.corrcoef(one.ravel(), other.ravel())[0, 1] > 0.9
            assert np.corrcoef(one[:, ::-1].ravel(), other.ravel())[0, 1] < 0.9  # not the other way round
