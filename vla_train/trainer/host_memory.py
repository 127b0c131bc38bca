"""Copies of tensors in host memory, so that they can be written while training goes on; and how much room there is for them.

The memory is made once and used for each checkpoint again. For tensors of a GPU it is pinned: making it takes long, copying
into it does not.
"""

import re
from contextlib import suppress
from pathlib import Path

import torch
from torch import Tensor

_BLOCK_BYTES = 1 << 30
"""PyTorch rounds what it pins up to a power of two."""
_ALIGNMENT = 64


class HostCopies:
    """Copies that live until `begin` is called again."""

    def __init__(self) -> None:
        self._blocks: list[Tensor] = []
        self._filled: list[int] = []
        """Bytes in use of each."""

    @property
    def num_bytes(self) -> int:
        """Size of the memory that is held."""
        return sum(block.nbytes for block in self._blocks)

    def reserve(self, num_bytes: int, *, pinned: bool) -> None:
        """Make memory for copies of so many bytes, and have it; what they take beyond that is made when it is needed."""
        for first in range(0, num_bytes, _BLOCK_BYTES):
            self._add(min(_BLOCK_BYTES, num_bytes - first), pinned=pinned).zero_()

    def begin(self) -> None:
        """Forget the copies: their memory is taken for others."""
        self._filled = [0] * len(self._blocks)

    def copy(self, tensor: Tensor) -> Tensor:
        """A contiguous copy, complete after `wait`."""
        tensor = tensor.detach()
        room = self._room(tensor.numel() * tensor.element_size(), pinned=tensor.device.type == "cuda")
        return room.view(tensor.dtype).view(tensor.shape).copy_(tensor, non_blocking=True)

    def wait(self) -> None:
        """Wait for the GPU to have copied."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()

    def _add(self, size: int, *, pinned: bool) -> Tensor:
        self._blocks.append(torch.empty(size, dtype=torch.uint8, pin_memory=pinned))
        self._filled.append(0)
        return self._blocks[-1]

    def _room(self, size: int, *, pinned: bool) -> Tensor:
        """In the first block that has it."""
        fitting = (number for number, block in enumerate(self._blocks) if self._filled[number] + size <= len(block))
        number = next(fitting, len(self._blocks))
        if number == len(self._blocks):
            self._add(size, pinned=pinned)
        first = self._filled[number]
        self._filled[number] = -(-(first + size) // _ALIGNMENT) * _ALIGNMENT
        return self._blocks[number][first : first + size]


def free_host_bytes(root: Path = Path("/")) -> int:
    """Memory that is free, or holds nothing but cached files, within the limits of the container (cgroups, version 2).

    Args:
        root: Where `proc` and `sys` are.
    """
    free = int(_number_in(root / "proc/meminfo", r"MemAvailable:\s+(\d+)") or 0) << 10
    path = re.search(r"^0::/(.*)$", _text(root / "proc/self/cgroup"), re.MULTILINE)
    own = root / "sys/fs/cgroup" / (path[1] if path else "")
    for group in (own, *own.parents):
        limit, used = _number_in(group / "memory.max"), _number_in(group / "memory.current")
        if limit is not None and used is not None:
            free = min(free, limit - used + (_number_in(group / "memory.stat", r"inactive_file (\d+)") or 0))
    return max(free, 0)


def _number_in(file: Path, pattern: str = r"(\d+)$") -> int | None:
    found = re.search(f"^{pattern}", _text(file), re.MULTILINE)
    return int(found[1]) if found else None


def _text(file: Path) -> str:
    text = ""
    with suppress(OSError):
        text = file.read_text()
    return text
