"""How much address space simulations reserve."""

import os
import re
from pathlib import Path

import mujoco
import numpy as np
import pytest
from fast_envs import BOWL_ON_PLATE, loaded_scene

from vla_envs.vector.arena import ARENA_BYTES, limit_arena

_FALLING = """
<mujoco>
  <size memory="{memory}"/>
  <worldbody>
    <geom type="plane" size="9 9 1"/>
    <body pos="0 0 0.2"><freejoint/><geom type="box" size=".1 .1 .1"/></body>
  </worldbody>
</mujoco>"""


def fall(model: mujoco.MjModel) -> np.ndarray:
    data = mujoco.MjData(model)
    for _ in range(100):
        mujoco.mj_step(model, data)
    assert data.ncon == 4
    return np.concatenate([data.qpos, data.qvel])


def test_a_large_arena_is_cut_and_the_simulation_stays_the_same() -> None:
    model = mujoco.MjModel.from_xml_string(_FALLING.format(memory="1G"))
    expected, sizes = fall(model), (model.nq, model.nv, model.ngeom, model.nbuffer)
    limit_arena(model)
    assert (model.narena, mujoco.MjData(model).narena) == (ARENA_BYTES, ARENA_BYTES)
    assert (model.nq, model.nv, model.ngeom, model.nbuffer) == sizes
    np.testing.assert_array_equal(fall(model), expected)


def test_a_small_arena_stays_as_it_is() -> None:
    model = mujoco.MjModel.from_xml_string(_FALLING.format(memory="1M"))
    limit_arena(model)
    assert model.narena == 1 << 20


def test_simulations_of_libero_reserve_little_and_touch_less() -> None:
    scene = loaded_scene(*BOWL_ON_PLATE).scene
    data = mujoco.MjData(scene.model)
    assert data.narena == ARENA_BYTES
    data.qpos[:], data.qvel[:] = np.split(scene.init_states[0][1:], [scene.model.nq])
    for _ in range(100):
        mujoco.mj_step(scene.model, data)
    assert 0 < data.maxuse_arena < ARENA_BYTES / 20
    assert not data.warning.number.any()


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc")
def test_a_process_of_many_simulations_can_be_forked() -> None:
    model = loaded_scene(*BOWL_ON_PLATE).model
    before = _reserved_gb()
    kept = [mujoco.MjData(model) for _ in range(32)]
    assert _reserved_gb() - before < 32 * 0.1
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0
    assert len(kept) == 32


def _reserved_gb() -> float:
    (kilobytes,) = re.findall(r"VmSize:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return int(kilobytes) / 1e6
