"""Copies of tensors in host memory, so that they can be written while training goes on; and how much room there is for them.

The memory is made once and used for each checkpoint again. For tensors of a GPU it is pinned: making it takes long, copying
into it does not.
"""

import re
from collections.abc import Callable
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
        self._devices: set[torch.device] = set()
        """GPUs that were told to copy."""

    @property
    def num_bytes(self) -> int:
        """Size of the memory that is held."""
        return sum(block.nbytes for block in self._blocks)

    def reserve(self, num_bytes: int, *, pinned: bool, wanted: Callable[[], bool] = lambda: True) -> None:
        """Make memory for copies of so many bytes, and have it; what they take beyond that is made when it is needed.

        Args:
            num_bytes: May be 0.
            pinned: For tensors of a GPU.
            wanted: Asked before each block of 1 GiB whether to go on.

        Raises:
            RuntimeError: There is too little memory, or not so much of it may be pinned.
        """
        for first in range(0, num_bytes, _BLOCK_BYTES):
            if not wanted():
                return
            self._add(min(_BLOCK_BYTES, num_bytes - first), pinned=pinned).zero_()

    def begin(self) -> None:
        """Forget the copies: their memory is taken for others."""
        self._filled = [0] * len(self._blocks)

    def copy(self, tensor: Tensor) -> Tensor:
        """A contiguous copy, complete after `wait`."""
        tensor = tensor.detach()
        on_gpu = tensor.device.type == "cuda"
        if on_gpu:
            self._devices.add(tensor.device)
        room = self._room(tensor.numel() * tensor.element_size(), pinned=on_gpu)
        return room.view(tensor.dtype).view(tensor.shape).copy_(tensor, non_blocking=True)

    def wait(self) -> None:
        """Wait for the GPU to have copied, and for no more: all of the device's work may be another thread's graph capture."""
        while self._devices:
            torch.cuda.current_stream(self._devices.pop()).synchronize()

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
    """Memory that is free, or holds nothing but cached files, within the limits of the container (cgroups, versions 1 and 2).

    Args:
        root: Where `proc` and `sys` are.
    """
    free = int(_number_in(root / "proc/meminfo", r"MemAvailable:\s+(\d+)") or 0) << 10
    for top, line, limit_file, used_file, cached_name in _CONTROL_GROUPS:
        path = re.search(line, _text(root / "proc/self/cgroup"), re.MULTILINE)
        own = root / top / (path[1] if path else "")
        for group in (own, *own.parents):
            limit, used = _number_in(group / limit_file), _number_in(group / used_file)
            if limit is not None and used is not None:
                free = min(free, limit - used + (_number_in(group / "memory.stat", rf"{cached_name} (\d+)") or 0))
    return max(free, 0)


_CONTROL_GROUPS = (
    ("sys/fs/cgroup", r"^0::/(.*)$", "memory.max", "memory.current", "inactive_file"),
    (
        "sys/fs/cgroup/memory",
        r"^\d+:(?:\w+,)*memory(?:,\w+)*:/(.*)$",
        *("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    ),
)
"""Of each version: where its groups are, which line names a process's own, and what they say: limit, use and cached files."""


def _number_in(file: Path, pattern: str = r"(\d+)$") -> int | None:
    found = re.search(f"^{pattern}", _text(file), re.MULTILINE)
    return int(found[1]) if found else None


def _text(file: Path) -> str:
    text = ""
    with suppress(OSError):
        text = file.read_text()
    return text
