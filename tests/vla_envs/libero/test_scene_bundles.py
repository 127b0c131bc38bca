"""Bundles: what comes back is what went in, and what is not whole or does not fit is refused with the reason."""

import json
import zipfile
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import mujoco
import numpy as np
import pytest

from vla_envs.errors import SceneFormatError
from vla_envs.libero.bundle import load_bundle, save_bundle
from vla_envs.libero.goals import Goal, InSite, JointPast, OnObject
from vla_envs.libero.scene import OscConstants, Placement, Scene, VisualSwitch

ORIGIN = "libero-test 1.0"
WORLD = """
<mujoco>
  <asset><texture name="noise" type="2d" builtin="checker" rgb1="1 0 0" rgb2="0 1 0" width="64" height="64"/></asset>
  <worldbody>
    <camera name="front" pos="0 -1 1"/>
    <body name="cube"><freejoint/><geom type="box" size=".1 .1 .1"/><site name="spot"/></body>
    <body name="knob" pos="1 0 0"><joint name="turn" type="hinge"/><geom type="sphere" size=".1"/></body>
  </worldbody>
</mujoco>
"""


def small_scene() -> Scene:
    """A scene with something of everything, in a model of a few kilobytes."""
    model = mujoco.MjModel.from_xml_string(WORLD)
    rng = np.random.default_rng(0)
    constants: dict[str, Any] = {name: rng.normal(size=7) for name in OscConstants._fields}
    constants |= {"grip_site": 0, "eef_body": 1, "gripper_speed": 0.01, "substeps": 25}
    return Scene(
        suite="small",
        task_id=3,
        name="turn_the_knob",
        instruction="turn the knob",
        max_episode_steps=50,
        detail="full",
        fixture_seed=7,
        model=model,
        init_states=rng.normal(size=(4, 1 + model.nq + model.nv)),
        goal=Goal(
            predicates=(
                OnObject(body=1, support=2, contact=0),
                InSite(body=2, site=0, size=(0.1, 0.2, 0.3)),
                JointPast(qpos_addresses=(7,), comparison=">=", threshold=0.5, every=False),
            ),
            contact_pairs=((np.array([0], np.int32), np.array([1], np.int32)),),
        ),
        osc=OscConstants(**constants),
        placements=(
            Placement(
                object_name="cube",
                qpos_address=0,
                ranges=rng.normal(size=(2, 4)),
                site=-1,
                attached_to="",
                orientation=rng.normal(size=4),
                yaw_range=rng.normal(size=2),
            ),
        ),
        visual_switches=(
            VisualSwitch(
                site_id=0,
                qpos_address=7,
                threshold=0.5,
                rgba_on=np.array([1, 0, 0, 1], np.float32),
                rgba_off=np.array([1, 0, 0, 0], np.float32),
            ),
        ),
        cameras={"agentview": 0},
    )


def assert_same(mine: Any, theirs: Any) -> None:
    if is_dataclass(mine):
        assert type(mine) is type(theirs)
        for field in fields(mine):
            assert_same(getattr(mine, field.name), getattr(theirs, field.name))
    elif isinstance(mine, tuple):
        assert len(mine) == len(theirs)
        for one, other in zip(mine, theirs, strict=True):
            assert_same(one, other)
    elif isinstance(mine, np.ndarray):
        np.testing.assert_array_equal(mine, theirs)
        assert mine.dtype == theirs.dtype
    elif isinstance(mine, mujoco.MjModel):
        assert model_bytes(mine) == model_bytes(theirs)
    else:
        assert mine == theirs


def model_bytes(model: mujoco.MjModel) -> bytes:
    buffer = np.empty(mujoco.mj_sizeModel(model), np.uint8)
    mujoco.mj_saveModel(model, None, buffer)
    return buffer.tobytes()


@pytest.fixture(params=[True, False], ids=["portable", "cached"])
def bundle(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    file = tmp_path / "small.scene"
    save_bundle(small_scene(), file, origin=ORIGIN, portable=request.param)
    return file


def model_beside(bundle: Path) -> Path | None:
    return next(bundle.parent.glob("*.mjb"), None)


def rewrite(bundle: Path, name: str, content: bytes) -> None:
    """Replace one member of the archive."""
    with zipfile.ZipFile(bundle) as archive:
        members = {member: archive.read(member) for member in archive.namelist()}
    with zipfile.ZipFile(bundle, "w") as archive:
        for member, old in members.items():
            archive.writestr(member, content if member == name else old)


def header(bundle: Path) -> dict[str, Any]:
    with zipfile.ZipFile(bundle) as archive:
        return json.loads(archive.read("header.json"))


def test_a_scene_comes_back_as_it_was(bundle: Path):
    assert_same(load_bundle(bundle, origin=ORIGIN), small_scene())


def test_writing_leaves_nothing_but_the_bundle(bundle: Path):
    files = {bundle} | ({model_beside(bundle)} - {None})
    assert set(bundle.parent.iterdir()) == files


def test_a_portable_bundle_is_one_file_that_may_be_moved(tmp_path: Path):
    save_bundle(small_scene(), tmp_path / "a.scene", origin=ORIGIN, portable=True)
    assert model_beside(tmp_path / "a.scene") is None
    moved = (tmp_path / "a.scene").rename(tmp_path / "elsewhere")
    assert_same(load_bundle(moved), small_scene())


def test_scenes_with_the_same_model_share_its_file(tmp_path: Path):
    for name in ("a.scene", "b.scene"):
        save_bundle(small_scene(), tmp_path / name, origin=ORIGIN, portable=False)
    assert len(list(tmp_path.glob("*.mjb"))) == 1


def test_a_model_goes_with_the_last_scene_that_names_it(tmp_path: Path):
    first, second = tmp_path / "a.scene", tmp_path / "b.scene"
    for file in (first, second):
        save_bundle(small_scene(), file, origin=ORIGIN, portable=False)
    changed = small_scene()
    changed.model.opt.timestep *= 2
    for file, num_models in ((first, 2), (second, 1)):
        save_bundle(changed, file, origin="later code", portable=False)
        assert len(list(tmp_path.glob("*.mjb"))) == num_models
        load_bundle(first)
        load_bundle(second)


def test_a_bundle_cut_off_anywhere_is_refused(bundle: Path):
    content = bundle.read_bytes()
    for length in np.linspace(0, len(content) - 1, 12, dtype=int):
        bundle.write_bytes(content[:length])
        with pytest.raises(SceneFormatError, match=r"small\.scene is damaged"):
            load_bundle(bundle)


def test_a_flipped_byte_of_the_model_or_the_arrays_is_refused(bundle: Path):
    beside = model_beside(bundle)
    for file in [bundle] + ([beside] if beside else []):
        content = file.read_bytes()
        with zipfile.ZipFile(bundle) as archive:
            first = archive.getinfo("arrays.npz").header_offset + 100 if file == bundle else 0
        for position in np.linspace(first, len(content) * 0.8, 8, dtype=int):
            file.write_bytes(content[:position] + bytes([content[position] ^ 0x5A]) + content[position + 1 :])
            with pytest.raises(SceneFormatError, match="damaged"):
                load_bundle(bundle)
        file.write_bytes(content)
    assert_same(load_bundle(bundle), small_scene())


@pytest.mark.parametrize(("offset", "value"), [(8, 1), (10, 99)], ids=["encrypted", "compressed by an unknown method"])
def test_a_flipped_bit_of_the_archives_own_list_is_refused_and_the_file_can_be_replaced(bundle: Path, offset: int, value: int):
    content = bytearray(bundle.read_bytes())
    content[content.index(b"PK\x01\x02") + offset] = value  # of the first file, which is the header
    bundle.write_bytes(content)
    with pytest.raises(SceneFormatError, match=r"small\.scene is damaged"):
        load_bundle(bundle)
    save_bundle(small_scene(), bundle, origin=ORIGIN, portable=model_beside(bundle) is None)
    assert_same(load_bundle(bundle), small_scene())


def test_swapped_arrays_or_models_are_refused_though_the_archive_is_whole(tmp_path: Path):
    file = tmp_path / "small.scene"
    for name in ("arrays.npz", "model.mjb"):
        save_bundle(small_scene(), file, origin=ORIGIN, portable=True)
        rewrite(file, name, b"something else")
        with pytest.raises(SceneFormatError, match="checksum"):
            load_bundle(file)


def test_a_missing_file_is_refused(bundle: Path):
    beside = model_beside(bundle)
    (beside or bundle).unlink()
    with pytest.raises(SceneFormatError, match=(beside or bundle).name):
        load_bundle(bundle)


def test_a_file_of_another_kind_is_refused(tmp_path: Path):
    file = tmp_path / "some.scene"
    file.write_text("not a zip")
    with pytest.raises(SceneFormatError, match="not a scene"):
        load_bundle(file)
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("photo.png", b"")
    with pytest.raises(SceneFormatError, match="not a scene"):
        load_bundle(file)


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"format": 99}, "format 99.*export it again"),
        ({"mujoco": "2.0.0"}, r"compiled by MuJoCo 2\.0\.0, this is " + mujoco.__version__),
        ({"goal": {"predicates": [{"kind": "Levitates"}], "contact_pairs": []}}, "Levitates"),
    ],
)
def test_a_bundle_of_another_version_is_refused_with_both_versions(bundle: Path, changed: dict[str, Any], reason: str):
    rewrite(bundle, "header.json", json.dumps(header(bundle) | changed).encode())
    with pytest.raises(SceneFormatError, match=reason):
        load_bundle(bundle)


def test_a_bundle_of_another_origin_is_refused_only_where_that_matters(bundle: Path):
    load_bundle(bundle)
    with pytest.raises(SceneFormatError, match=r"was made from libero-test 1\.0, installed is libero 9"):
        load_bundle(bundle, origin="libero 9")
