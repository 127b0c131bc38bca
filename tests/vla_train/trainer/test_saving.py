"""Saving while training goes on, on one rank: what is written is the state as it was, one checkpoint after the other."""

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_policy import TEMPERATURE, SmallPolicy, make_groups

from vla_train.config import AlgoConfig, OptimConfig
from vla_train.trainer import saving, tensor_files
from vla_train.trainer.checkpoint import load_checkpoint
from vla_train.trainer.checkpoint_folder import list_checkpoints
from vla_train.trainer.group_trainer import GroupTrainer
from vla_train.trainer.host_memory import HostCopies, free_host_bytes
from vla_train.trainer.manifest import CheckpointError
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
    """Nothing is written until it is set."""
    go_on, written = threading.Event(), tensor_files.save_file

    def save_file(tensors: Any, path: Path) -> None:
        assert go_on.wait(60)
        written(tensors, path)

    monkeypatch.setattr(tensor_files, "save_file", save_file)
    return go_on


def test_what_is_written_is_the_state_as_it_was_when_the_checkpoint_began(tmp_path: Path, slow_disk: threading.Event) -> None:
    policy, trainer = make_trainer()
    groups = make_groups(policy)
    trainer.update(groups, iteration=0)
    expected, told = state(trainer), []
    saver = CheckpointSaver(tmp_path, trainer=trainer, keep=2, on_saved=lambda path, still_s: told.append((path, still_s)))
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
    saver.begin(iteration=1, **NOTHING)
    saver.close()
    slow_disk.set()
    with pytest.raises(CheckpointError, match="the run has ended"):
        saver.finish()
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == [".writing-step_000001"]


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
