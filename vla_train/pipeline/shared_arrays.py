"""NumPy arrays that two processes of one machine share, so that observations are written once and never pickled.

They live in one memory-mapped file. Its owner picks the name, both map it, and it is unlinked as soon as they have: nothing is
left behind, however either of them ends. Space is reserved when it is made, so a full /dev/shm is an error and not a crash.
"""

import math
import mmap
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass

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


def make_shared_file(num_bytes: int) -> str:
    """An empty file for about `num_bytes`: in memory (/dev/shm) where it fits, else in the temporary folder."""
    folder = "/dev/shm"
    if not os.path.isdir(folder) or not os.access(folder, os.W_OK):
        folder = tempfile.gettempdir()
    else:
        status = os.statvfs(folder)
        if status.f_bavail * status.f_frsize < num_bytes:
            folder = tempfile.gettempdir()
    descriptor, path = tempfile.mkstemp(prefix="vla_train_", dir=folder)
    os.close(descriptor)
    return path


def create_arrays(path: str, layout: Mapping[str, ArrayLayout]) -> dict[str, np.ndarray]:
    """Give the file its size and map the arrays into it (zeros).

    Raises:
        OSError: There is no room for it.
    """
    with open(path, "r+b") as file:
        os.posix_fallocate(file.fileno(), 0, max(1, total_bytes(layout)))
    return attach_arrays(path, layout)


def attach_arrays(path: str, layout: Mapping[str, ArrayLayout]) -> dict[str, np.ndarray]:
    """Map the arrays of a file that `create_arrays` has made; they stay valid after the file is unlinked."""
    with open(path, "r+b") as file:
        memory = mmap.mmap(file.fileno(), 0)
    arrays: dict[str, np.ndarray] = {}
    offset = 0
    for name, entry in layout.items():
        count = math.prod(entry.shape)
        arrays[name] = np.frombuffer(memory, entry.dtype, count, offset).reshape(entry.shape)
        offset += -(-entry.num_bytes // _ALIGNMENT) * _ALIGNMENT
    return arrays
