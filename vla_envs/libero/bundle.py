"""A `Scene` as a file: a zip archive of the MuJoCo model, arrays and a JSON header; nothing in it is run or unpickled.

    header.json   format, versions, checksums, and everything that is not an array
    arrays.npz    initial states, controller constants, placements
    model.mjb     MuJoCo's own binary format, of exactly one MuJoCo version

A portable bundle is that one file, compressed. In the cache the model is a separate, uncompressed file beside the archive: it
holds a quarter of a gigabyte of textures, and MuJoCo reads it three times as fast that way. The file is named by its checksum,
so that tasks with the same model (the ten of `libero_goal`) share it; it is removed with the last archive that names it.

Invariant: a bundle that loads is whole (checksums are verified before MuJoCo sees it) and fits this MuJoCo and this format.
"""

import hashlib
import io
import json
import os
import shutil
import tempfile
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import mujoco
import numpy as np

from vla_envs.errors import SceneFormatError
from vla_envs.libero.goals import goal_from_json, goal_to_json
from vla_envs.libero.scene import OscConstants, Placement, Scene, VisualSwitch

FORMAT = 3
_HEADER, _ARRAYS, _MODEL = "header.json", "arrays.npz", "model.mjb"
_PLAIN = ("suite", "task_id", "name", "instruction", "max_episode_steps", "detail", "fixture_seed", "cameras")
_DAMAGE = (OSError, EOFError, ValueError, LookupError, RuntimeError, zipfile.BadZipFile, zlib.error)
"""What comes of reading a damaged archive; RuntimeError where it claims to be encrypted, or compressed by an unknown method."""


def save_bundle(scene: Scene, file: Path, *, origin: str, portable: bool) -> None:
    """Write a scene; an existing bundle is replaced only when the new one is complete.

    Args:
        scene: What to write.
        file: Path of the bundle.
        origin: Name and version of what the scene was made from.
        portable: Write one compressed file (about a quarter of the size); otherwise the model beside it, which loads faster.
    """
    arrays: dict[str, np.ndarray] = {"init_states": scene.init_states}
    header: dict[str, Any] = {"format": FORMAT, "mujoco": mujoco.__version__, "origin": origin}
    header |= {name: getattr(scene, name) for name in _PLAIN} | {"goal": goal_to_json(scene.goal)}
    header["osc"] = _split(scene.osc._asdict(), arrays, "osc")
    header["placements"] = [_split(vars(item), arrays, f"placement{index}") for index, item in enumerate(scene.placements)]
    header["visual_switches"] = [
        _split(vars(item), arrays, f"switch{index}") for index, item in enumerate(scene.visual_switches)
    ]
    packed = io.BytesIO()
    np.savez(packed, **arrays)  # type: ignore[arg-type]

    file.parent.mkdir(parents=True, exist_ok=True)
    replaced_sha256 = _model_named_in(file)
    new_file = file.with_name(f".{file.name}.{os.getpid()}")
    new_model = new_file.with_name(f"{new_file.name}.mjb")
    try:
        mujoco.mj_saveModel(scene.model, str(new_model), None)
        header["arrays_sha256"] = hashlib.sha256(packed.getvalue()).hexdigest()
        header["model_sha256"] = _sha256(new_model)
        with zipfile.ZipFile(new_file, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
            archive.writestr(_HEADER, json.dumps(header, indent=1))
            archive.writestr(_ARRAYS, packed.getvalue())
            if portable:
                archive.write(new_model, _MODEL)
        if not portable:
            os.replace(new_model, _model_beside(file, header["model_sha256"]))
        os.replace(new_file, file)
        if replaced_sha256 and replaced_sha256 not in map(_model_named_in, file.parent.glob("*.scene")):
            _model_beside(file, replaced_sha256).unlink(missing_ok=True)
    finally:
        new_file.unlink(missing_ok=True)
        new_model.unlink(missing_ok=True)


def load_bundle(file: Path, *, origin: str | None = None) -> Scene:
    """Read a scene.

    Args:
        file: Path of a bundle.
        origin: The origin that it must have; None accepts any.

    Raises:
        SceneFormatError: The file is damaged, or its format, MuJoCo version or origin is another one.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            header = json.loads(archive.read(_HEADER))
            _check_versions(file, header, origin)
            packed_arrays = archive.read(_ARRAYS)
            if hashlib.sha256(packed_arrays).hexdigest() != header["arrays_sha256"]:
                raise SceneFormatError(f"{file} is damaged: the checksum of its arrays is wrong")
            with np.load(io.BytesIO(packed_arrays), allow_pickle=False) as packed:
                arrays = {name: packed[name] for name in packed.files}
            with _model_file(archive, _model_beside(file, header["model_sha256"])) as model_file:
                if _sha256(model_file) != header["model_sha256"]:
                    raise SceneFormatError(f"{file} is damaged: the checksum of its model is wrong")
                model = mujoco.MjModel.from_binary_path(str(model_file))
        return Scene(
            **{name: header[name] for name in _PLAIN},
            model=model,
            init_states=arrays["init_states"],
            goal=goal_from_json(header["goal"]),
            osc=_join(OscConstants, header["osc"], arrays, "osc"),
            placements=tuple(
                _join(Placement, item, arrays, f"placement{index}") for index, item in enumerate(header["placements"])
            ),
            visual_switches=tuple(
                _join(VisualSwitch, item, arrays, f"switch{index}") for index, item in enumerate(header["visual_switches"])
            ),
        )
    except SceneFormatError:
        raise
    except (*_DAMAGE, TypeError, AttributeError, mujoco.FatalError) as error:
        reason = str(error) if isinstance(error, OSError) else repr(error)
        raise SceneFormatError(f"{file} is damaged or not a scene: {reason}") from error


@contextmanager
def _model_file(archive: zipfile.ZipFile, beside: Path) -> Iterator[Path]:
    """The model as a file that MuJoCo can read."""
    if _MODEL not in archive.namelist():
        yield beside
        return
    with tempfile.TemporaryDirectory() as folder:
        extracted = Path(folder) / _MODEL
        with archive.open(_MODEL) as packed, extracted.open("wb") as plain:
            shutil.copyfileobj(packed, plain, 1 << 20)
        yield extracted


def _model_beside(file: Path, sha256: str) -> Path:
    return file.with_name(f"{sha256[:32]}.mjb")


def _model_named_in(file: Path) -> str | None:
    """The checksum of an archive's model; None if it cannot be read."""
    try:
        with zipfile.ZipFile(file) as archive:
            return str(json.loads(archive.read(_HEADER))["model_sha256"])
    except _DAMAGE:
        return None


def _sha256(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def _check_versions(file: Path, header: dict[str, Any], origin: str | None) -> None:
    if header.get("format") != FORMAT:
        raise SceneFormatError(f"{file} has format {header.get('format')}, this version reads {FORMAT}: export it again")
    if header.get("mujoco") != mujoco.__version__:
        raise SceneFormatError(
            f"{file} was compiled by MuJoCo {header.get('mujoco')}, this is {mujoco.__version__}: "
            "export it again, or install that version"
        )
    if origin is not None and header.get("origin") != origin:
        raise SceneFormatError(f"{file} was made from {header.get('origin')}, installed is {origin}")


def _split(values: Mapping[str, Any], arrays: dict[str, np.ndarray], prefix: str) -> dict[str, Any]:
    """Fields of one part of a scene as JSON data; arrays among them go to `arrays` instead."""
    plain = {}
    for name, value in values.items():
        if isinstance(value, np.ndarray):
            arrays[f"{prefix}.{name}"] = value
        else:
            plain[name] = value
    return plain


def _join(kind: Any, plain: dict[str, Any], arrays: dict[str, np.ndarray], prefix: str) -> Any:
    own = {name.removeprefix(f"{prefix}."): array for name, array in arrays.items() if name.startswith(f"{prefix}.")}
    return kind(**plain, **own)
