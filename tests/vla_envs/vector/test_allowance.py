"""Cores and memory that a container leaves, read from files that look like those of real ones."""

import os
from pathlib import Path

import pytest

from vla_envs.vector.allowance import allowed_cores, free_memory_bytes

GIB = 1 << 30


def machine(root: Path, membership: str, **groups: dict[str, str]) -> Path:
    """A machine of 64 GiB and a process in the control groups of `membership`; files of each group by its folder."""
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/meminfo").write_text(f"MemTotal: 1 kB\nMemAvailable:   {64 * GIB >> 10} kB\nCached: 2 kB\n")
    (root / "proc/self/cgroup").write_text(membership)
    for folder, files in groups.items():
        path = root / "sys/fs/cgroup" / folder.replace("__", "/")
        path.mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            (path / name).write_text(text)
    return root


def memory(limit: str, used_gib: int, cached_gib: int = 0) -> dict[str, str]:
    return {
        "memory.max": limit,
        "memory.current": f"{used_gib * GIB}\n",
        "memory.stat": f"anon 5\ninactive_file {cached_gib * GIB}\n",
    }


@pytest.fixture(autouse=True)
def sixteen_cores(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(16)))


def test_without_a_container_the_whole_machine_counts(tmp_path: Path):
    root = machine(tmp_path, "0::/\n", **{".": {}})
    assert (allowed_cores(root), free_memory_bytes(root)) == (16, 64 * GIB)


def test_a_container_without_limits_leaves_the_whole_machine(tmp_path: Path):
    root = machine(tmp_path, "0::/\n", **{".": memory("max\n", 3) | {"cpu.max": "max 100000\n"}})
    assert (allowed_cores(root), free_memory_bytes(root)) == (16, 64 * GIB)


@pytest.mark.parametrize(("quota", "cores"), [("200000", 2), ("250000", 3), ("20000", 1), ("9900000", 16)])
def test_a_quota_of_the_cpu_limits_the_cores(tmp_path: Path, quota: str, cores: int):
    assert allowed_cores(machine(tmp_path, "0::/\n", **{".": {"cpu.max": f"{quota} 100000\n"}})) == cores


def test_cached_files_count_as_free_within_the_memory_limit(tmp_path: Path):
    root = machine(tmp_path, "0::/\n", **{".": memory(f"{8 * GIB}\n", used_gib=7, cached_gib=4)})
    assert free_memory_bytes(root) == 5 * GIB


def test_the_tightest_of_the_groups_above_decides(tmp_path: Path):
    root = machine(
        tmp_path,
        "0::/pods/mine\n",
        pods=memory(f"{20 * GIB}\n", used_gib=17) | {"cpu.max": "300000 100000\n"},
        pods__mine=memory(f"{10 * GIB}\n", used_gib=2) | {"cpu.max": "800000 100000\n"},
    )
    assert (allowed_cores(root), free_memory_bytes(root)) == (3, 3 * GIB)


def test_the_older_control_groups_limit_as_well(tmp_path: Path):
    """Docker's listing names the host's folder, which the container sees as the topmost one."""
    root = machine(
        tmp_path,
        "5:cpu,cpuacct:/docker/1a2b\n4:memory:/docker/1a2b\n3:pids:/docker/1a2b\n",
        **{
            "cpu,cpuacct": {"cpu.cfs_quota_us": "400000\n", "cpu.cfs_period_us": "100000\n"},
            "memory": {"memory.limit_in_bytes": f"{6 * GIB}", "memory.usage_in_bytes": f"{2 * GIB}", "memory.stat": ""},
        },
    )
    assert (allowed_cores(root), free_memory_bytes(root)) == (4, 4 * GIB)


def test_the_older_control_groups_without_limits_leave_the_whole_machine(tmp_path: Path):
    unlimited = {"memory.limit_in_bytes": "9223372036854771712", "memory.usage_in_bytes": "5", "memory.stat": ""}
    quota = {"cpu.cfs_quota_us": "-1", "cpu.cfs_period_us": "100000"}
    root = machine(tmp_path, "2:cpu:/\n1:memory:/\n", cpu=quota, memory=unlimited)
    assert (allowed_cores(root), free_memory_bytes(root)) == (16, 64 * GIB)


def test_this_process_may_use_something():
    assert allowed_cores() >= 1
    assert free_memory_bytes() > 0
