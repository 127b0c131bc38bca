"""Saving while training goes on, on one rank: what is written is the state as it was, one checkpoint after the other."""

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rank_processes import run_ranks
from small_policy import TEMPERATURE, SmallPolicy, make_groups

from vla_train.config import AlgoConfig, OptimConfig
from vla_train.trainer import host_memory, saving, tensor_files
from vla_train.trainer.checkpoint import load_checkpoint
from vla_train.trainer.checkpoint_folder import list_checkpoints
from vla_train.trainer.group_trainer import GroupTrainer
from vla_train.trainer.host_memory import HostCopies, free_host_bytes
from vla_train.trainer.manifest import CheckpointError
from vla_train.trainer.parallel import Ranks
from vla_train.trainer.saving import CheckpointSaver
from vla_train.trainer.tensor_files import StoredTensors, write_tensors

pytestmark = pytest.mark.usefixtures("one_thread")
NOTHING: dict[str, Any] = {"rollout_state": {}, "extra": {}}


def make_trainer() -> tuple[SmallPolicy, GroupTrainer]:
    policy = SmallPolicy()
    optim = OptimConfig(learning_rate=1e-2, minibatch_trajectories=5, microbatch_rows=7)
    return policy, GroupTrainer(optim, AlgoConfig(), policy=policy, temperature=TEMPERATURE, total_steps=1, seed=0)


def state(trainer: GroupTrainer) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in trainer.state()}


@pytest.fixture
def slow_disk(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Nothing is written until it is set; there is room for copies."""
    go_on, written = threading.Event(), tensor_files.save_file

    def save_file(tensors: Any, path: Path) -> None:
        assert go_on.wait(60)
        written(tensors, path)

    monkeypatch.setattr(tensor_files, "save_file", save_file)
    monkeypatch.setattr(saving, "free_host_bytes", lambda: 1 << 40)
    return go_on


def test_what_is_written_is_the_state_as_it_was_when_the_checkpoint_began(tmp_path: Path, slow_disk: threading.Event) -> None:
    policy, trainer = make_trainer()
    groups = make_groups(policy)
    trainer.update(groups, iteration=0)
    expected, told = state(trainer), []
    saver = CheckpointSaver(tmp_path, trainer=trainer, keep=2, on_saved=lambda path, still_s: told.append((path, still_s)))
    assert saver.in_background
    path = saver.begin(iteration=1, **NOTHING)
    trainer.update(groups, iteration=1)
    saver.check()
    assert list_checkpoints(tmp_path) == told == []
    slow_disk.set()
    saver.finish()
    assert [saved for saved, _ in told] == list_checkpoints(tmp_path) == [path]
    _, resumed = make_trainer()
    load_checkpoint(path, trainer=resumed)
    for name, tensor in state(resumed).items():
        assert torch.equal(tensor, expected[name]), name
    assert not torch.equal(state(trainer)["weight.head.weight"], expected["weight.head.weight"])


def test_a_checkpoint_waits_for_the_one_before(tmp_path: Path, slow_disk: threading.Event) -> None:
    saver = CheckpointSaver(tmp_path, trainer=make_trainer()[1], keep=2)
    assert saver.in_background
    first = saver.begin(iteration=1, **NOTHING)
    threading.Timer(0.2, slow_disk.set).start()
    second = saver.begin(iteration=2, **NOTHING)
    assert list_checkpoints(tmp_path)[0] == first
    saver.finish()
    assert list_checkpoints(tmp_path) == [first, second]


def test_what_goes_wrong_in_the_background_is_told_once_and_the_next_checkpoint_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saver = CheckpointSaver(tmp_path, trainer=make_trainer()[1], keep=2)
    with monkeypatch.context() as patch:
        patch.setattr(tensor_files, "save_file", lambda *_: (tmp_path / "missing" / "file").write_bytes(b""))
        saver.begin(iteration=1, **NOTHING)
        with pytest.raises(CheckpointError, match=r"step_000001 could not be written: .*No such file"):
            saver.finish()
    saver.check()
    assert list((tmp_path / "checkpoints").iterdir()) == []
    path = saver.begin(iteration=2, **NOTHING)
    saver.finish()
    assert list_checkpoints(tmp_path) == [path]


def test_nothing_is_named_or_deleted_after_the_end_of_the_run(tmp_path: Path, slow_disk: threading.Event) -> None:
    """Another process may have the folder by then."""
    saver = CheckpointSaver(tmp_path, trainer=make_trainer()[1], keep=2)
    assert saver.in_background
    saver.begin(iteration=1, **NOTHING)
    (folder,) = (tmp_path / "checkpoints").iterdir()
    saver.close()
    again = CheckpointSaver(tmp_path, trainer=make_trainer()[1], keep=2)
    again.begin(iteration=1, **NOTHING)
    assert len({folder, *(tmp_path / "checkpoints").iterdir()}) == 2
    slow_disk.set()
    with pytest.raises(CheckpointError, match="the run has ended"):
        saver.finish()
    again.finish()
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step_000001"]


def test_where_one_rank_gets_no_memory_for_copies_all_write_while_training_stands_still(tmp_path: Path) -> None:
    assert run_ranks(save_without_memory, 2, tmp_path) == [[False, False]] * 2
    assert [path.name for path in list_checkpoints(tmp_path)] == ["step_000001", "step_000002"]


def refuse_memory(*_: object, **__: object) -> None:
    raise RuntimeError("no more memory may be pinned")


def save_without_memory(ranks: Ranks, run: Path) -> list[bool]:
    """Whether it is written in the background, after each checkpoint."""
    saving.free_host_bytes = lambda: 1 << 40  # type: ignore[attr-defined]
    if ranks.rank == 1:
        HostCopies.reserve = refuse_memory  # type: ignore[method-assign]
    policy = SmallPolicy()
    optim = OptimConfig(learning_rate=1e-2, minibatch_trajectories=5, microbatch_rows=7)
    trainer = GroupTrainer(optim, AlgoConfig(), policy=policy, temperature=TEMPERATURE, total_steps=1, seed=0, ranks=ranks)
    saver = CheckpointSaver(run, trainer=trainer, keep=2)
    assert saver.in_background
    told = []
    for iteration in (1, 2):
        saver.begin(iteration=iteration, **NOTHING)
        told.append(saver.in_background)
    saver.close()
    return told


def test_a_saver_that_is_closed_reserves_no_more(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    began, go_on = threading.Event(), threading.Event()
    add = HostCopies._add

    def slow(copies: HostCopies, size: int, *, pinned: bool) -> torch.Tensor:
        began.set()
        assert go_on.wait(60)
        return add(copies, size, pinned=pinned)

    monkeypatch.setattr(HostCopies, "_add", slow)
    monkeypatch.setattr(host_memory, "_BLOCK_BYTES", 100)
    monkeypatch.setattr(saving, "free_host_bytes", lambda: 1 << 40)
    saver = CheckpointSaver(tmp_path, trainer=make_trainer()[1], keep=2)
    assert began.wait(60)
    closing = threading.Thread(target=saver.close)
    closing.start()
    while not saver._closed:
        closing.join(0.01)
    assert closing.is_alive()
    go_on.set()
    closing.join()
    assert saver._copies.num_bytes == 100


def test_older_checkpoints_that_cannot_be_deleted_end_no_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    told: list[Path] = []
    saver = CheckpointSaver(tmp_path, trainer=make_trainer()[1], keep=1, on_saved=lambda path, _: told.append(path))

    def refuse(*_: object, **__: object) -> None:
        raise OSError("input/output error")

    monkeypatch.setattr(saving, "keep_newest_and_best", refuse)
    path = saver.begin(iteration=1, **NOTHING)
    saver.finish()
    assert told == list_checkpoints(tmp_path) == [path]
    assert "older checkpoints could not be deleted: input/output error" in caplog.text


def test_copies_fit_if_all_ranks_of_each_host_have_room_for_theirs() -> None:
    assert saving._fit([("a", 30, 100), ("a", 40, 100), ("b", 70, 100)])
    assert not saving._fit([("a", 30, 100), ("a", 50, 100), ("b", 0, 100)])
    assert not saving._fit([("a", 1, 100), ("b", 70, 80)])


def test_copies_are_equal_and_their_memory_is_used_again() -> None:
    tensors = [
        torch.randn(7, 5).T,
        torch.arange(3, dtype=torch.uint8),
        torch.randn(4, 4).bfloat16(),
        torch.tensor(2.5),
        torch.zeros(0, 3),
    ]
    copies = HostCopies()
    copies.reserve(1000, pinned=False)
    for _ in range(2):
        copies.begin()
        held = [copies.copy(tensor) for tensor in tensors]
        copies.wait()
        for copy, tensor in zip(held, tensors, strict=True):
            assert copy.dtype == tensor.dtype
            assert copy.is_contiguous()
            assert torch.equal(copy, tensor)
            tensor.add_(1)
    assert copies.num_bytes == 1000


def test_the_memory_that_is_free_is_the_least_of_the_machines_and_the_containers(tmp_path: Path) -> None:
    group = tmp_path / "sys/fs/cgroup/job/step"
    group.mkdir(parents=True)
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text("0::/job/step\n")
    (tmp_path / "proc/meminfo").write_text("MemTotal: 99 kB\nMemAvailable:     64 kB\n")
    (group / "memory.max").write_text("max\n")
    assert free_host_bytes(tmp_path) == 64 << 10
    for name, content in {"max": "50000\n", "current": "40000\n", "stat": "file 9\ninactive_file 7000\n"}.items():
        (group.parent / f"memory.{name}").write_text(content)
    assert free_host_bytes(tmp_path) == 17_000


def test_the_limits_of_older_containers_count_too(tmp_path: Path) -> None:
    group = tmp_path / "sys/fs/cgroup/memory/job"
    group.mkdir(parents=True)
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text("12:cpu,cpuacct:/other\n9:memory:/job/step\n0::/\n")
    (tmp_path / "proc/meminfo").write_text("MemAvailable:     64 kB\n")
    for name, content in {
        "limit_in_bytes": "50000\n",
        "usage_in_bytes": "40000\n",
        "stat": "inactive_file 5\ntotal_inactive_file 7000\n",
    }.items():
        (group / f"memory.{name}").write_text(content)
    assert free_host_bytes(tmp_path) == 17_000
    (group.parent / "memory.limit_in_bytes").write_text(f"{(1 << 63) - 4096}\n")  # none
    (group.parent / "memory.usage_in_bytes").write_text("40000\n")
    assert free_host_bytes(tmp_path) == 17_000


@pytest.mark.parametrize("rows", [1, 2, 5, 8])
def test_rows_written_by_any_number_of_ranks_are_read_by_any_number(rows: int, tmp_path: Path) -> None:
    whole = torch.arange(3 * rows).reshape(rows, 3)
    for writers in (1, 2, 3):
        folder = tmp_path / str(writers)
        folder.mkdir()
        for rank, part in enumerate(whole.tensor_split([-(-rows // writers) * n for n in range(1, writers)])):
            only_here = {"number": torch.tensor(7.0)} if rank == 0 else {}
            write_tensors(folder, {"whole": part, **only_here}.items(), rank=rank)
        with StoredTensors(folder) as stored:
            assert stored.shape("whole") == whole.shape
            assert torch.equal(stored.read("whole"), whole)
            assert stored.read("number") == 7
            for first, last in np.ndindex(rows + 1, rows + 1):
                assert torch.equal(stored.read("whole", slice(first, last)), whole[first:last])
