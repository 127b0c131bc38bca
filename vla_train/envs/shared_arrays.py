"""NumPy arrays that two processes of one machine share, so that observations are written once and never pickled.

They live in one memory-mapped file that has no name: its owner opens it, the other inherits the descriptor, and nothing is left
behind, however either of them ends. Space is reserved when it is sized, so a full /dev/shm is an error and not a crash.
"""

import math
import mmap
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from multiprocessing import reduction
from typing import Any

import numpy as np

_ALIGNMENT = 64


@dataclass(frozen=True, slots=True)
class ArrayLayout:
    """Shape and type of one array."""

    shape: tuple[int, ...]
    dtype: str

    @property
    def num_bytes(self) -> int:
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize


def total_bytes(layout: Mapping[str, ArrayLayout]) -> int:
    """Size of a file that holds the arrays."""
    return sum(-(-entry.num_bytes // _ALIGNMENT) * _ALIGNMENT for entry in layout.values())


class SharedFile:
    """A file without a name; as an argument of a process that is being started, that process has it too.

    Args:
        descriptor: Of the open file; `close` closes it. Arrays in it stay.
    """

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor

    def __reduce__(self) -> Any:
        return _inherited, (reduction.DupFd(self.descriptor),)

    def close(self) -> None:
        os.close(self.descriptor)


def _inherited(duplicate: Any) -> SharedFile:
    return SharedFile(duplicate.detach())


def make_shared_file(num_bytes: int) -> SharedFile:
    """An empty file for about `num_bytes`: in memory (/dev/shm) where it fits, else in the temporary folder."""
    folder = "/dev/shm"
    if not os.path.isdir(folder) or not os.access(folder, os.W_OK):
        folder = tempfile.gettempdir()
    else:
        status = os.statvfs(folder)
        if status.f_bavail * status.f_frsize < num_bytes:
            folder = tempfile.gettempdir()
    with tempfile.TemporaryFile(dir=folder) as file:
        return SharedFile(os.dup(file.fileno()))


def create_arrays(file: SharedFile, layout: Mapping[str, ArrayLayout]) -> dict[str, np.ndarray]:
    """Give the file its size and map the arrays into it (zeros).

    Raises:
        OSError: There is no room for it.
    """
    os.posix_fallocate(file.descriptor, 0, max(1, total_bytes(layout)))
    return attach_arrays(file, layout)


def attach_arrays(file: SharedFile, layout: Mapping[str, ArrayLayout]) -> dict[str, np.ndarray]:
    """Map the arrays of a file that `create_arrays` has sized; they stay valid after it is closed."""
    memory = mmap.mmap(file.descriptor, 0)
    arrays: dict[str, np.ndarray] = {}
    offset = 0
    for name, entry in layout.items():
        count = math.prod(entry.shape)
        arrays[name] = np.frombuffer(memory, entry.dtype, count, offset).reshape(entry.shape)
        offset += -(-entry.num_bytes // _ALIGNMENT) * _ALIGNMENT
    return arrays
