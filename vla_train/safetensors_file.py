"""Writes safetensors files that whoever may read the files beside them may read too.

The safetensors library leaves its files readable by their owner alone (mode 0600), whatever the umask: a colleague, or a
server under another account, could read a checkpoint's JSON and not its weights.
"""

import stat
from collections.abc import Mapping
from pathlib import Path

from safetensors import torch as safetensors_torch
from torch import Tensor


def save_file(tensors: Mapping[str, Tensor], path: Path, *, metadata: Mapping[str, str] | None = None) -> None:
    """Write tensors by name, with the mode that any new file in that folder gets.

    Raises:
        OSError, SafetensorError: The file cannot be written.
    """
    mode = _mode_of_new_files(path)
    safetensors_torch.save_file(dict(tensors), path, metadata=None if metadata is None else dict(metadata))
    if stat.S_IMODE(path.stat().st_mode) != mode:
        path.chmod(mode)


def _mode_of_new_files(path: Path) -> int:
    """Seen from an empty file beside `path`: asking for the umask changes it for a moment, for all threads."""
    probe = path.with_name(f".{path.name}.mode")
    probe.touch()
    try:
        return stat.S_IMODE(probe.stat().st_mode)
    finally:
        probe.unlink()
