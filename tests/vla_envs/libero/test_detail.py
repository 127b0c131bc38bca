"""Simplified textures: powers of two, so that pictures do not depend on how an OpenGL driver makes its half-size copies."""

from collections.abc import Iterator
from pathlib import Path

import mujoco
import numpy as np
import pytest
from PIL import Image

from vla_envs.libero.detail import MAX_TEXTURE, simplify
from vla_envs.vector.gl_context import open_device

SIZES = {"floor": (255, 255), "bottle": (800, 1024), "tiles": (500, 500), "strip": (3, 200)}
"""Width and height; all but the last are those of LIBERO's files."""


@pytest.fixture(scope="module")
def spec(tmp_path_factory: pytest.TempPathFactory) -> mujoco.MjSpec:
    """A scene whose textures are dark, with a bright line through the middle, as between the planks of a floor."""
    folder: Path = tmp_path_factory.mktemp("textures")
    spec = mujoco.MjSpec()
    for name, (width, height) in SIZES.items():
        planks = np.full((height, width, 3), 60, np.uint8)
        planks[height // 2] = 250
        Image.fromarray(planks).save(folder / f"{name}.png")
        spec.add_texture(name=name, type=mujoco.mjtTexture.mjTEXTURE_2D, file=str(folder / f"{name}.png"))
    return spec


@pytest.fixture
def gl() -> Iterator[None]:
    context = open_device("auto").make_context()
    yield
    context.free()


def texture_pixels(model: mujoco.MjModel, name: str) -> np.ndarray:
    """(H, W, 3) uint8."""
    texture = model.tex(name)
    height, width, start = int(texture.height[0]), int(texture.width[0]), int(texture.adr[0])
    return model.tex_data[start : start + 3 * height * width].reshape(height, width, 3)


def drift_of_copies(model: mujoco.MjModel, name: str) -> float:
    """How far the means of the driver's half-size copies (mipmaps), down to 8 pixels, are from the texture's, at most."""
    from OpenGL import GL  # on EGL, once a context has been made

    context = mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_100)
    pixels = texture_pixels(model, name)
    GL.glBindTexture(GL.GL_TEXTURE_2D, int(context.texture[model.tex(name).id]))
    GL.glPixelStorei(GL.GL_PACK_ALIGNMENT, 1)
    levels = range(1, int(np.log2(min(pixels.shape[:2]) / 8)) + 1)
    copies = [GL.glGetTexImage(GL.GL_TEXTURE_2D, level, GL.GL_RGB, GL.GL_UNSIGNED_BYTE) for level in levels]
    context.free()
    return max(abs(float(np.frombuffer(copy, np.uint8).mean() - pixels.mean())) for copy in copies)


def test_textures_become_powers_of_two_and_keep_their_mean(spec: mujoco.MjSpec):
    simple = spec.copy()
    simplify(simple)
    exact, simplified = spec.compile(), simple.compile()
    sides = {name: texture_pixels(simplified, name).shape[1::-1] for name in SIZES}
    assert sides == {"floor": (256, 256), "bottle": (512, MAX_TEXTURE), "tiles": (512, 512), "strip": (4, 256)}
    for name in SIZES:
        assert abs(float(texture_pixels(exact, name).mean() - texture_pixels(simplified, name).mean())) < 0.5, name


def test_half_size_copies_of_simplified_textures_keep_their_mean(spec: mujoco.MjSpec, gl: None):
    simple = spec.copy()
    simplify(simple)
    model = simple.compile()
    assert max(drift_of_copies(model, name) for name in ("floor", "bottle", "tiles")) < 2


def test_mesas_copies_of_other_sizes_do_not(spec: mujoco.MjSpec, gl: None):
    """Why sizes are changed; the day that this fails, they need not be any more."""
    if open_device("auto").is_gpu:
        pytest.skip("drivers of GPUs take means of any size")
    assert drift_of_copies(spec.compile(), "floor") > 5
