"""Compiled scenes as files for Isaac Lab: which entities a scene has, how its geoms look, and what is written."""

import subprocess
import sys
from pathlib import Path

import mujoco
import numpy as np
import pytest

from vla_envs.errors import SceneFormatError, UnsupportedTaskError
from vla_envs.isaac.env import IsaacEnv
from vla_envs.isaac.lab.entities import Kind, find_entities, joints_of, prim_name
from vla_envs.isaac.lab.surfaces import surface_of
from vla_envs.isaac.lab.task_file import converted_tasks, load_task
from vla_envs.libero.engine_scene import LiberoEngineScene
from vla_envs.libero.initial_states import START_NUMBERS
from vla_envs.libero.recent_scenes import shared_scene

SHAPES = """
<mujoco>
  <asset>
    <texture name="cube" type="cube" builtin="flat" rgb1="1 0 0" rgb2="0 0 1" width="8" height="8"/>
    <texture name="plain" type="2d" builtin="checker" rgb1="1 1 1" rgb2="0 0 0" width="8" height="8"/>
    <material name="cube" texture="cube"/>
    <material name="plain" texture="plain" rgba="0.5 1 1 1"/>
  </asset>
  <worldbody>
    <geom type="plane" size="1 2 0.1" material="plain"/>
    <geom type="box" size="0.1 0.2 0.3" material="cube"/>
    <geom type="sphere" size="0.1" rgba="1 0 0 1"/>
    <geom type="cylinder" size="0.1 0.2"/>
    <geom type="capsule" size="0.1 0.2"/>
    <geom type="ellipsoid" size="0.1 0.2 0.3"/>
    <geom type="box" size="0.1 0.2 0.3" rgba="1 1 1 0"/>
  </worldbody>
</mujoco>
"""


@pytest.fixture(scope="module")
def scene() -> LiberoEngineScene:
    return shared_scene("libero_spatial", 3, "fast", None)


def test_entities_are_found_from_joints_and_actuators_alone(scene: LiberoEngineScene):
    model, entities = scene.model, find_entities(scene.model)
    kinds = [entity.kind for entity in entities]
    assert kinds[0] is Kind.ARENA
    assert kinds.count(Kind.ROBOT) == 1
    assert kinds.count(Kind.OBJECT) == (model.jnt_type == mujoco.mjtJoint.mjJNT_FREE).sum()
    assert sorted(body for entity in entities for body in entity.bodies) == list(range(model.nbody))
    jointed = {int(body) for body in model.jnt_bodyid}
    assert not jointed & set(entities[0].bodies)
    assert all(len(joints_of(model, body)) <= 1 for body in range(model.nbody))


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ('<joint type="ball"/><geom size="1"/>', "ball joint"),
        ('<joint axis="1 0 0"/><joint axis="0 1 0"/><geom size="1"/>', "several joints"),
        ('<freejoint/><geom size="1"/><body><joint/><geom size="1"/></body>', "is free and has parts that move"),
    ],
)
def test_what_cannot_be_expressed_is_named(body: str, message: str):
    model = mujoco.MjModel.from_xml_string(f'<mujoco><worldbody><body name="thing">{body}</body></worldbody></mujoco>')
    with pytest.raises(UnsupportedTaskError, match=f"thing.*{message}"):
        find_entities(model)


def test_names_are_valid_in_usd():
    assert [prim_name(name) for name in ("plate_1", "a-b c", "1st")] == ["plate_1", "a_b_c", "_1st"]


def test_every_shape_becomes_triangles_that_face_outwards_and_have_its_size():
    model = mujoco.MjModel.from_xml_string(SHAPES)
    for geom, half in enumerate([(1, 2, 0), (0.1, 0.2, 0.3), (0.1,) * 3, (0.1, 0.1, 0.2), (0.1, 0.1, 0.3), (0.1, 0.2, 0.3)]):
        surface = surface_of(model, geom)
        assert surface is not None
        np.testing.assert_allclose(np.abs(surface.points).max(axis=0), half, atol=2e-3)
        corners = surface.points[surface.faces]
        across = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
        assert (np.einsum("fi,fi->f", across, surface.normals[surface.faces].mean(axis=1)) > 0).all()
        if geom:
            assert (np.einsum("fi,fi->f", across, corners.mean(axis=1)) > 0).all()
    assert surface_of(model, 6) is None


def test_pictures_are_tinted_and_cube_pictures_laid_on_all_sides():
    model = mujoco.MjModel.from_xml_string(SHAPES)
    plane, box = surface_of(model, 0), surface_of(model, 1)
    assert plane is not None
    assert plane.texture is not None
    assert plane.texture[..., 0].max() == 127
    assert plane.texture[..., 1].max() == 255
    assert box is not None
    assert box.texture is not None
    assert box.texture.shape[0] == 6 * box.texture.shape[1]
    rows = np.floor(box.uvs[box.faces].mean(axis=1)[:, 1] * 6)
    assert sorted(rows.tolist()) == sorted([0.0, 1.0, 2.0, 3.0, 4.0, 5.0] * 2)


def test_a_converted_task_is_read_back_as_it_was_and_shares_its_files(scene: LiberoEngineScene, tmp_path: Path):
    pytest.importorskip("pxr", reason="needs OpenUSD: pip install 'vla-envs[usd]'")
    from vla_envs.isaac.lab.convert import convert_task

    file = convert_task(scene, tmp_path, num_starts=3)
    written = sorted((tmp_path / "assets").iterdir())
    task = load_task(tmp_path, "libero_spatial", 3)
    assert task.file == file
    assert converted_tasks(tmp_path) == {("libero_spatial", 3): file}
    assert task.instruction == scene.scene.instruction
    assert {tmp_path / part.file for part in task.parts} == set(written)
    assert task.starts.objects.shape == (3, sum(part.kind == "object" for part in task.parts), 13)
    np.testing.assert_allclose(np.linalg.norm(task.starts.objects[..., 3:7], axis=-1), 1.0)
    assert task.starts.joint_positions.shape == (3, sum(len(part.joints) for part in task.parts))
    kinds = [predicate["kind"] for predicate in task.goal.predicates]
    assert kinds == [type(predicate).__name__ for predicate in scene.scene.goal.predicates]
    convert_task(scene, tmp_path, num_starts=3)
    assert sorted((tmp_path / "assets").iterdir()) == written


def test_converted_starts_are_those_of_the_other_backends(scene: LiberoEngineScene, tmp_path: Path):
    pytest.importorskip("pxr", reason="needs OpenUSD: pip install 'vla-envs[usd]'")
    from vla_envs.isaac.lab.convert import convert_task

    convert_task(scene, tmp_path, num_starts=2)
    converted = load_task(tmp_path, "libero_spatial", 3).starts.mujoco_states
    envs = IsaacEnv(4, suite="libero_spatial", task_id=3, num_starts=2, cameras=(), backend="mujoco")
    envs.reset(seed=1)
    numbers = [int(np.random.default_rng([1, slot]).integers(START_NUMBERS)) % 2 for slot in range(4)]
    assert set(numbers) == {0, 1}
    for number, state in zip(numbers, envs.get_state(), strict=True):
        np.testing.assert_allclose(converted[number, 1:], state[1:], atol=1e-9)
    envs.close()


def test_a_damaged_task_is_refused(tmp_path: Path):
    (tmp_path / "libero_goal_0.json").write_text('{"format": 1}')
    (tmp_path / "libero_goal_0.npz").write_bytes(b"")
    with pytest.raises(SceneFormatError, match=r"libero_goal_0\.json is damaged or not a converted task"):
        load_task(tmp_path, "libero_goal", 0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--suite", "libero_goat"], "error: unknown suite 'libero_goat'"),
        (["--suite", "libero_goal", "--task-ids", "10"], "error: task_ids must be a list of tasks of libero_goal"),
        (["--suite", "libero_goal", "--num-starts", "0"], "error: --num-starts must be at least 1, got 0"),
    ],
)
def test_bad_options_are_refused_in_one_line(tmp_path: Path, options: list[str], message: str):
    command = [sys.executable, "-m", "vla_envs.isaac", "convert", "--out", str(tmp_path), *options]
    result = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert result.returncode == 2
    assert result.stderr.strip().splitlines()[-1].startswith(message)
