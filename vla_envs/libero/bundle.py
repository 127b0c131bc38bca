"""A `Scene` as one file: a zip archive of the MuJoCo model, arrays and a JSON header; nothing in it is run or unpickled.

    header.json   format, versions, and everything that is not an array
    arrays.npz    initial states, controller constants, placements
    model.mjb     MuJoCo's own binary format, of exactly one MuJoCo version

Invariant: a file that loads is whole (the archive's checksums are verified) and fits this MuJoCo and this format.
"""

import io
import json
import os
import zipfile
from dataclasses import fields
from pathlib import Path
from typing import Any

import mujoco
import numpy as np

from vla_envs.errors import SceneFormatError
from vla_envs.libero.goals import goal_from_json, goal_to_json
from vla_envs.libero.scene import OscConstants, Placement, Scene, VisualSwitch

FORMAT = 1
_HEADER, _ARRAYS, _MODEL = "header.json", "arrays.npz", "model.mjb"
_PLAIN = ("suite", "task_id", "name", "instruction", "max_episode_steps", "detail", "cameras")


def save_bundle(scene: Scene, file: Path, *, libero: str, compress: bool) -> None:
    """Write a scene; a file that is there is replaced at once, when all is written.

    Args:
        scene: What to write.
        file: Where.
        libero: Name and version of the LIBERO it comes from.
        compress: Small (LZMA, about a fifth) and slow to read, or large and fast.
    """
    arrays: dict[str, np.ndarray] = {"init_states": scene.init_states, "obstacles": scene.obstacles}
    header: dict[str, Any] = {"format": FORMAT, "mujoco": mujoco.__version__, "libero": libero}
    header |= {name: getattr(scene, name) for name in _PLAIN} | {"goal": goal_to_json(scene.goal)}
    header["osc"] = _split(scene.osc, arrays, "osc")
    header["placements"] = [_split(item, arrays, f"placement{index}") for index, item in enumerate(scene.placements)]
    header["visual_switches"] = [_split(item, arrays, f"switch{index}") for index, item in enumerate(scene.visual_switches)]
    model = np.empty(mujoco.mj_sizeModel(scene.model), np.uint8)
    mujoco.mj_saveModel(scene.model, None, model)
    packed = io.BytesIO()
    np.savez(packed, **arrays)  # type: ignore[arg-type]

    file.parent.mkdir(parents=True, exist_ok=True)
    writing = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        with zipfile.ZipFile(writing, "w", zipfile.ZIP_LZMA if compress else zipfile.ZIP_STORED) as archive:
            archive.writestr(_HEADER, json.dumps(header, indent=1))
            archive.writestr(_ARRAYS, packed.getvalue())
            archive.writestr(_MODEL, model.tobytes())
        os.replace(writing, file)
    finally:
        writing.unlink(missing_ok=True)


def load_bundle(file: Path, *, libero: str | None = None) -> Scene:
    """Read a scene.

    Args:
        file: What `save_bundle` wrote.
        libero: The LIBERO it must come from; None accepts any.

    Raises:
        SceneFormatError: It is damaged, or of another format, MuJoCo or LIBERO.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            header = json.loads(archive.read(_HEADER))
            _check_versions(file, header, libero)
            with np.load(io.BytesIO(archive.read(_ARRAYS)), allow_pickle=False) as packed:
                arrays = {name: packed[name] for name in packed.files}
            model = mujoco.MjModel.from_binary_path(_MODEL, {_MODEL: archive.read(_MODEL)})
        return Scene(
            **{name: header[name] for name in _PLAIN},
            model=model,
            init_states=arrays["init_states"],
            goal=goal_from_json(header["goal"]),
            osc=_join(OscConstants, header["osc"], arrays, "osc"),
            placements=tuple(
                _join(Placement, item, arrays, f"placement{index}") for index, item in enumerate(header["placements"])
            ),
            obstacles=arrays["obstacles"],
            visual_switches=tuple(
                _join(VisualSwitch, item, arrays, f"switch{index}") for index, item in enumerate(header["visual_switches"])
            ),
        )
    except SceneFormatError:
        raise
    except (OSError, EOFError, ValueError, KeyError, TypeError, zipfile.BadZipFile, mujoco.FatalError) as error:
        raise SceneFormatError(f"{file} is damaged or not a scene: {error or error!r}") from error
    except Exception as error:
        if type(error).__module__ not in ("lzma", "_lzma", "zlib"):
            raise
        raise SceneFormatError(f"{file} is damaged: {error}") from error


def _check_versions(file: Path, header: dict[str, Any], libero: str | None) -> None:
    if header.get("format") != FORMAT:
        raise SceneFormatError(f"{file} has format {header.get('format')}, this version reads {FORMAT}: export it again")
    if header.get("mujoco") != mujoco.__version__:
        raise SceneFormatError(
            f"{file} was compiled by MuJoCo {header.get('mujoco')}, this is {mujoco.__version__}: "
            "export it again, or install that version"
        )
    if libero is not None and header.get("libero") != libero:
        raise SceneFormatError(f"{file} comes from {header.get('libero')}, installed is {libero}")


def _split(item: Any, arrays: dict[str, np.ndarray], prefix: str) -> dict[str, Any]:
    """A dataclass as JSON data; its arrays go to `arrays`."""
    plain = {}
    for field in fields(item):
        value = getattr(item, field.name)
        if isinstance(value, np.ndarray):
            arrays[f"{prefix}.{field.name}"] = value
        else:
            plain[field.name] = value
    return plain


def _join(kind: Any, plain: dict[str, Any], arrays: dict[str, np.ndarray], prefix: str) -> Any:
    own = {name.removeprefix(f"{prefix}."): array for name, array in arrays.items() if name.startswith(f"{prefix}.")}
    return kind(**plain, **own)
