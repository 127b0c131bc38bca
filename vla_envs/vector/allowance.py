"""How much of the machine this process may use: cores and free memory, within the limits of its container.

Containers are control groups (cgroups, versions 1 and 2): a process obeys the limits of its own group and of all above it.
Where there are none, or they cannot be read, the whole machine counts.
"""

import math
import os
import re
from collections.abc import Iterator
from pathlib import Path

_ROOT = Path("/")


def allowed_cores(root: Path = _ROOT) -> int:
    """Cores that may be kept busy, at least 1.

    Args:
        root: Where `proc` and `sys` are.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    for group in _control_groups("cpu", root):
        quota = _numbers(group / "cpu.max") or _numbers(group / "cpu.cfs_quota_us", group / "cpu.cfs_period_us")
        if quota and quota[0] > 0:  # microseconds of all cores together, per period
            cores = min(cores, math.ceil(quota[0] / quota[1]))
    return cores


def free_memory_bytes(root: Path = _ROOT) -> int:
    """Memory that is free, or holds nothing but cached files.

    Args:
        root: Where `proc` and `sys` are.
    """
    available = re.search(r"^MemAvailable:\s+(\d+) kB", (root / "proc/meminfo").read_text(), re.MULTILINE)
    assert available is not None
    free = int(available[1]) << 10
    for group in _control_groups("memory", root):
        limit_and_use = _numbers(group / "memory.max", group / "memory.current") or _numbers(
            group / "memory.limit_in_bytes", group / "memory.usage_in_bytes"
        )
        if limit_and_use:
            cached = re.search(r"^inactive_file (\d+)", _text(group / "memory.stat"), re.MULTILINE)
            free = min(free, limit_and_use[0] - limit_and_use[1] + (int(cached[1]) if cached else 0))
    return max(free, 0)


def _control_groups(controller: str, root: Path) -> Iterator[Path]:
    """Folders of the groups that limit this process: its own and those above, as far as they can be seen from here."""
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "" or controller in controllers.split(","):
            top = root / "sys/fs/cgroup" / controllers
            own = top / path.lstrip("/")
            yield from (group for group in (own, *own.parents) if group.is_relative_to(top) and group.is_dir())


def _numbers(*files: Path) -> tuple[int, int] | None:
    """The two numbers in these files; None if one is missing, or says "max"."""
    try:
        first, second = " ".join(map(_text, files)).split()
        return int(first), int(second)
    except ValueError:
        return None


def _text(file: Path) -> str:
    """What the file says; nothing if it cannot be read."""
    try:
        return file.read_text()
    except OSError:
        return ""
