"""What is out of view is not drawn, and no picture shows it."""

from collections.abc import Iterator

import mujoco
import numpy as np
import pytest

from vla_envs.vector.culling import Culling
from vla_envs.vector.gl_context import open_device

_WORLD = """
<mujoco>
  <visual><quality offsamples="0" shadowsize="512"/></visual>
  <asset>
    <mesh name="wedge" vertex="0 0 0  1 0 0  0 1 0  0 0 1" scale=".4 .3 .2"/>
    <material name="matte" rgba=".7 .5 .3 1"/>
    <material name="mirror" rgba=".5 .5 .6 1" reflectance=".8"/>
  </asset>
  <worldbody>
    <light pos="0 0 9" dir=".3 .2 -1" directional="true" castshadow="{shadows}"/>
    {cameras}
    {things}
    {mirror}
  </worldbody>
</mujoco>
"""
_BOX = '<geom type="box" size="1 1 .1" pos="0 0 -2" material="mirror"/>'
_PLANE = '<geom type="plane" size="4 4 .1" pos="0 0 -2" material="mirror"/>'
NUM_THINGS, NUM_CAMERAS = 150, 6


@pytest.fixture(autouse=True)
def opengl() -> Iterator[None]:
    context = open_device("cpu").make_context()
    yield
    context.free()


def make_world(*, mirror: str = "", shadows: bool = False) -> mujoco.MjModel:
    """Boxes and meshes all around, near and far, and cameras of several lenses that look in all directions."""
    rng = np.random.default_rng(0)

    def numbers(values: np.ndarray) -> str:
        return " ".join(f"{value:.4f}" for value in values)

    things = [
        f'<geom {kind} material="matte" pos="{numbers(rng.uniform(-3, 3, 3))}" quat="{numbers(rng.normal(size=4))}"/>'
        for kind in rng.choice(['type="mesh" mesh="wedge"', 'type="box" size=".1 .02 .3"'], NUM_THINGS)
    ]
    cameras = [
        f'<camera fovy="{fovy:.1f}" pos="{numbers(rng.uniform(-1, 1, 3))}" quat="{numbers(rng.normal(size=4))}"/>'
        for fovy in rng.uniform(20, 100, NUM_CAMERAS)
    ]
    xml = _WORLD.format(shadows=str(shadows).lower(), cameras="".join(cameras), things="".join(things), mirror=mirror)
    return mujoco.MjModel.from_xml_string(xml)


def draw(model: mujoco.MjModel, camera_id: int, *, cull: bool, width: int = 96, height: int = 64) -> tuple[np.ndarray, int]:
    """The picture, and how many things were left out of it."""
    data = mujoco.MjData(model)
    mujoco.mj_forward(model, data)
    context = mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_100)
    mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN, context)
    drawn = mujoco.MjvScene(model, maxgeom=1000)
    camera = mujoco.MjvCamera()
    camera.type, camera.fixedcamid = mujoco.mjtCamera.mjCAMERA_FIXED, camera_id
    everything = mujoco.mjtCatBit.mjCAT_ALL
    mujoco.mjv_updateScene(model, data, mujoco.MjvOption(), mujoco.MjvPerturb(), camera, everything, drawn)
    if cull:
        Culling(model, drawn).leave_out(data, width / height)
    left_out = sum(geom.type == mujoco.mjtGeom.mjGEOM_NONE for geom in drawn.geoms[: drawn.ngeom])
    pixels = np.empty((height, width, 3), np.uint8)
    viewport = mujoco.MjrRect(0, 0, width, height)
    mujoco.mjr_render(viewport, drawn, context)
    mujoco.mjr_readPixels(pixels, None, viewport, context)
    context.free()
    return pixels, left_out


def assert_pictures_stay(model: mujoco.MjModel) -> list[int]:
    """How many things were left out of each camera's picture."""
    counts = []
    for camera_id in range(NUM_CAMERAS):
        expected, _ = draw(model, camera_id, cull=False)
        pixels, left_out = draw(model, camera_id, cull=True)
        np.testing.assert_array_equal(pixels, expected)
        counts.append(left_out)
    return counts


def test_most_of_what_is_around_is_left_out_and_pictures_stay():
    counts = assert_pictures_stay(make_world())
    assert min(counts) > NUM_THINGS / 4
    assert max(counts) < NUM_THINGS


def test_a_mirror_may_show_what_is_out_of_view_but_only_while_it_is_in_view():
    counts = assert_pictures_stay(make_world(mirror=_BOX))
    assert min(counts) == 0
    assert max(counts) > NUM_THINGS / 4


@pytest.mark.parametrize("world", [{"mirror": _PLANE}, {"shadows": True}], ids=["mirror plane", "shadows"])
def test_nothing_is_left_out_where_a_plane_reflects_or_shadows_fall(world: dict):
    assert set(assert_pictures_stay(make_world(**world))) == {0}
