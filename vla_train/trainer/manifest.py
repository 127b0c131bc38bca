"""What a checkpoint consists of: `manifest.json` names every other file with its size and SHA-256.

It is written last. A checkpoint whose files are not all as the manifest says is damaged, and is never read.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from vla_train.errors import RunError

_FORMAT = 1
_NAME = "manifest.json"


class CheckpointError(RunError):
    """A checkpoint is damaged, or could not be written."""


def describe_files(folder: Path, files: Iterable[Path]) -> dict[str, dict[str, Any]]:
    """Make sure that files in a folder are on the disk, and describe them as the manifest does.

    Raises:
        OSError: One cannot be read again.
    """
    described = {}
    for path in files:
        flush(path)
        described[path.relative_to(folder).as_posix()] = {"bytes": path.stat().st_size, "sha256": _digest(path)}
    return described


def write_manifest(folder: Path, fields: Mapping[str, Any], *, described: Mapping[str, dict[str, Any]]) -> None:
    """Describe all files of a checkpoint, and make sure that they are on the disk.

    Args:
        folder: Holds everything else already.
        fields: JSON data to keep besides.
        described: The files of which `describe_files` was asked already, maybe by others.
    """
    known = {folder / name for name in described}
    left = [path for path in folder.rglob("*") if path.is_file() and path not in known]
    files = {**described, **describe_files(folder, left)}
    manifest = {"format": _FORMAT, **fields, "files": dict(sorted(files.items()))}
    (folder / _NAME).write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
    for path in (folder / _NAME, *[path for path in folder.rglob("*") if path.is_dir()], folder):
        flush(path)


def read_manifest(path: Path) -> dict[str, Any]:
    """The fields of `write_manifest`, and `files`; the files themselves are not looked at.

    Raises:
        CheckpointError: There is none, or it is damaged.
        ValueError: Another version wrote it.
    """
    try:
        manifest = json.loads((path / _NAME).read_text(encoding="utf-8"))
        version = manifest["format"]
    except FileNotFoundError:
        raise CheckpointError(f"{path} is not a checkpoint of a run: it has no {_NAME}") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"checkpoint {path} is damaged: {_NAME} ({error})") from error
    if version != _FORMAT:
        raise ValueError(f"checkpoint {path} has format {version}, this version reads {_FORMAT}")
    return manifest


def verify_checkpoint(path: Path) -> dict[str, Any]:
    """Check size and SHA-256 of every file; returns the manifest.

    Raises:
        CheckpointError: A file is missing or damaged; the message names it.
    """
    manifest = read_manifest(path)
    for name, expected in manifest["files"].items():
        file = path / name
        if not file.is_file():
            raise CheckpointError(f"checkpoint {path} is damaged: {name} is missing")
        try:
            whole = file.stat().st_size == expected["bytes"] and _digest(file) == expected["sha256"]
        except OSError as error:
            raise CheckpointError(f"checkpoint {path} is damaged: {name} cannot be read ({error})") from error
        if not whole:
            raise CheckpointError(f"checkpoint {path} is damaged: {name} is not what was written")
    return manifest


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def flush(path: Path) -> None:
    """Make sure that a file or folder is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
