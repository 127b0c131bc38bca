"""Checkpoints: a resumed run gives the numbers of an uninterrupted one, whatever happens to the disk or the process."""

import logging
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from small_policy import TEMPERATURE, SmallPolicy, make_groups, save_checkpoint

from vla_train.config import AlgoConfig, OptimConfig
from vla_train.trainer import checkpoint as checkpoint_module
from vla_train.trainer.checkpoint import load_checkpoint, prepare_run
from vla_train.trainer.checkpoint_folder import best_checkpoint, latest_checkpoint, list_checkpoints
from vla_train.trainer.group_trainer import GroupTrainer, UpdateMetrics
from vla_train.trainer.manifest import CheckpointError, verify_checkpoint
from vla_train.trainer.optimizer import MasterAdamW
from vla_train.trainer.parallel import ONE_RANK
from vla_train.trainer.tensor_files import StoredTensors, write_tensors

pytestmark = pytest.mark.usefixtures("one_thread")
OPTIM = OptimConfig(learning_rate=1e-2, warmup_steps=5, minibatch_trajectories=5, microbatch_rows=7)
ROLLOUT_STATE = {"specs": np.arange(12).reshape(2, 6), "instruction": np.array(["pick the bowl", "open"])}


def make_trainer(
    *, optim: OptimConfig = OPTIM, seed: int = 0, dtype: torch.dtype = torch.float32
) -> tuple[SmallPolicy, GroupTrainer]:
    policy = SmallPolicy(seed=seed, dtype=dtype)
    return policy, GroupTrainer(optim, AlgoConfig(), policy=policy, temperature=TEMPERATURE, total_steps=1, seed=0)


def train_iteration(policy: SmallPolicy, trainer: GroupTrainer, iteration: int) -> UpdateMetrics:
    metrics = trainer.update(make_groups(policy, seed=iteration), iteration=iteration)
    trainer.push_weights(policy)
    return replace(metrics, duration_s=0)


def save(run: Path, trainer: GroupTrainer, iteration: int, **options: object) -> Path:
    extra = {"next_group_id": 7, "history": [0.1, 0.2]}
    return save_checkpoint(run, iteration=iteration, trainer=trainer, rollout_state=ROLLOUT_STATE, extra=extra, **options)  # type: ignore[arg-type]


def weights_of(policy: SmallPolicy) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in policy.module.named_parameters()}


@contextmanager
def mounted(folder: Path, options: str) -> Iterator[Path]:
    """A disk of its own, in memory."""
    folder.mkdir()
    result = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], capture_output=True, text=True)
    if result.returncode != 0:
        pytest.skip(f"a disk cannot be mounted: {result.stderr.strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A folder on a disk of 256 kB."""
    with mounted(tmp_path / "disk", "size=256k") as folder:
        yield folder


@pytest.fixture
def read_only_folder(tmp_path: Path) -> Iterator[Path]:
    """A folder that this user may not write to; root is kept out by nothing but the disk."""
    if os.geteuid() == 0:
        with mounted(tmp_path / "read_only", "ro") as folder:
            yield folder
    else:
        tmp_path.chmod(0o500)
        yield tmp_path


@contextmanager
def files_no_larger_than(num_bytes: int) -> Iterator[None]:
    """A disk that is nearly full: writing more into a file fails."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize(
    ("dtype", "offload"), [(torch.float32, False), (torch.float32, True), (torch.bfloat16, False), (torch.bfloat16, True)]
)
def test_a_resumed_run_gives_the_losses_and_weights_of_an_uninterrupted_one(
    dtype: torch.dtype, offload: bool, tmp_path: Path
) -> None:
    optim = replace(OPTIM, cpu_offload=offload)
    policy, trainer = make_trainer(optim=optim, dtype=dtype)
    for iteration in (0, 1):
        train_iteration(policy, trainer, iteration)
    path = save(tmp_path, trainer, 2)
    expected = [train_iteration(policy, trainer, iteration) for iteration in (2, 3)]

    resumed_policy, resumed = make_trainer(optim=optim, dtype=dtype, seed=1)
    checkpoint = load_checkpoint(path, trainer=resumed)
    assert (checkpoint.iteration, resumed.version, resumed_policy.version, resumed.num_updates) == (2, 2, 2, 6)
    assert [train_iteration(resumed_policy, resumed, iteration) for iteration in (2, 3)] == expected
    for name, value in weights_of(policy).items():
        assert torch.equal(weights_of(resumed_policy)[name], value), name


def test_a_weight_that_rarely_has_a_gradient_goes_on_with_its_own_count_of_steps(tmp_path: Path) -> None:
    def optimizer() -> tuple[dict[str, torch.nn.Parameter], MasterAdamW]:
        weights = {name: torch.nn.Parameter(torch.ones(3)) for name in ("often", "rarely")}
        return weights, MasterAdamW(OPTIM, parameters=weights, ranks=ONE_RANK)

    def steps(weights: dict[str, torch.nn.Parameter], adamw: MasterAdamW, numbers: range) -> None:
        for number in numbers:
            loss = weights["often"].square().sum() + (weights["rarely"].square().sum() if number % 3 == 0 else 0.0)
            loss.backward()
            adamw.step(1e-2)

    weights, adamw = optimizer()
    steps(weights, adamw, range(4))
    write_tensors(tmp_path, adamw.state(), rank=0)
    steps(weights, adamw, range(4, 8))
    resumed, other = optimizer()
    with StoredTensors(tmp_path) as stored:
        other.load_state(stored)
    steps(resumed, other, range(4, 8))
    for name, value in weights.items():
        assert torch.equal(resumed[name], value), name


@pytest.mark.parametrize("offload", [False, True])
def test_a_run_may_go_on_with_its_optimizer_state_elsewhere(offload: bool, tmp_path: Path) -> None:
    policy, trainer = make_trainer(optim=replace(OPTIM, cpu_offload=offload), dtype=torch.bfloat16)
    train_iteration(policy, trainer, 0)
    path = save(tmp_path, trainer, 1)
    expected = train_iteration(policy, trainer, 1)
    resumed_policy, resumed = make_trainer(optim=replace(OPTIM, cpu_offload=not offload), dtype=torch.bfloat16, seed=1)
    load_checkpoint(path, trainer=resumed)
    assert train_iteration(resumed_policy, resumed, 1) == expected


def test_what_the_loop_keeps_comes_back(tmp_path: Path) -> None:
    policy, trainer = make_trainer()
    train_iteration(policy, trainer, 0)
    checkpoint = load_checkpoint(save(tmp_path, trainer, 1, score=0.25))
    assert checkpoint.extra == {"next_group_id": 7, "history": [0.1, 0.2]}
    assert checkpoint.score == 0.25
    (state,) = checkpoint.rollout_states
    assert state.keys() == ROLLOUT_STATE.keys()
    for name, value in ROLLOUT_STATE.items():
        np.testing.assert_array_equal(state[name], value)
    exported = load_file(checkpoint.policy / "model.safetensors")
    assert all(torch.equal(exported[name], value) for name, value in weights_of(policy).items())


def test_a_checkpoint_before_the_first_update_resumes_too(tmp_path: Path) -> None:
    policy, trainer = make_trainer()
    path = save(tmp_path, trainer, 0)
    expected = train_iteration(policy, trainer, 0)
    resumed_policy, resumed = make_trainer(seed=1)
    load_checkpoint(path, trainer=resumed)
    assert train_iteration(resumed_policy, resumed, 0) == expected


def test_random_numbers_go_on_where_they_were(tmp_path: Path) -> None:
    _, trainer = make_trainer()
    path = save(tmp_path, trainer, 1)
    expected = torch.rand(3)
    torch.manual_seed(123)
    load_checkpoint(path, trainer=trainer)
    assert torch.equal(torch.rand(3), expected)


def test_small_updates_are_not_lost_in_bfloat16() -> None:
    optim = replace(OPTIM, learning_rate=4e-5, warmup_steps=0, minibatch_trajectories=100, weight_decay=0.0)
    policy, trainer = make_trainer(optim=optim, dtype=torch.bfloat16)
    groups = make_groups(policy)
    before = weights_of(policy)["head.weight"].float()
    for iteration in range(100):
        trainer.update(groups, iteration=iteration)
    moved = (weights_of(policy)["head.weight"].float() - before).abs().mean()
    assert moved > 1e-3


def test_the_newest_and_the_best_are_kept(tmp_path: Path) -> None:
    _, trainer = make_trainer()
    for iteration, score in ((1, 0.1), (2, 0.9), (3, None), (4, 0.3), (5, None)):
        save(tmp_path, trainer, iteration, score=score, keep=2)
    assert [path.name for path in list_checkpoints(tmp_path)] == ["step_000002", "step_000004", "step_000005"]
    assert best_checkpoint(tmp_path) == tmp_path / "checkpoints" / "step_000002"
    assert latest_checkpoint(tmp_path) == tmp_path / "checkpoints" / "step_000005"


def test_of_equal_scores_the_newest_is_the_best(tmp_path: Path) -> None:
    _, trainer = make_trainer()
    for iteration, score in ((999_999, 0.5), (1_000_000, 0.5), (1_000_001, 0.4)):
        save(tmp_path, trainer, iteration, score=score, keep=1)
    assert [path.name for path in list_checkpoints(tmp_path)] == ["step_1000000", "step_1000001"]
    assert best_checkpoint(tmp_path) == tmp_path / "checkpoints" / "step_1000000"


def test_what_is_written_after_a_damaged_checkpoint_is_kept_and_the_damaged_one_is_not(tmp_path: Path) -> None:
    _, trainer = make_trainer()
    save(tmp_path, trainer, 8, keep=1)
    damaged = save(tmp_path, trainer, 10, score=0.9, keep=2)
    os.truncate(damaged / "rollout.npz", 10)
    assert latest_checkpoint(tmp_path) == tmp_path / "checkpoints" / "step_000008"
    newest = save(tmp_path, trainer, 9, keep=1)
    assert list_checkpoints(tmp_path) == [newest]
    assert latest_checkpoint(tmp_path) == newest


def test_the_same_iteration_can_be_saved_again_with_its_score(tmp_path: Path) -> None:
    _, trainer = make_trainer()
    save(tmp_path, trainer, 1)
    path = save(tmp_path, trainer, 1, score=0.5)
    assert load_checkpoint(path).score == 0.5
    assert list((tmp_path / "checkpoints").iterdir()) == [path]


def test_a_checkpoint_whose_place_was_to_be_taken_when_the_process_ended_has_it_back(tmp_path: Path) -> None:
    _, trainer = make_trainer()
    path = save(tmp_path, trainer, 1, keep=1)
    path.rename(path.with_name(".replaced-step_000001"))  # as it is between the two renames
    path.with_name(".writing-step_000001").mkdir()
    prepare_run(tmp_path)
    assert list((tmp_path / "checkpoints").iterdir()) == [path]
    assert latest_checkpoint(tmp_path) == path


def test_a_checkpoint_that_was_replaced_when_the_process_ended_is_deleted(tmp_path: Path) -> None:
    _, trainer = make_trainer()
    path = save(tmp_path, trainer, 1, keep=1)
    shutil.copytree(path, path.with_name(".replaced-step_000001"))
    prepare_run(tmp_path)
    assert list((tmp_path / "checkpoints").iterdir()) == [path]


def test_a_checkpoint_that_cannot_be_replaced_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, trainer = make_trainer()
    path = save(tmp_path, trainer, 1, keep=1)
    rename = Path.rename

    def refuse(source: Path, target: Path) -> Path:
        if source.name.startswith(".writing-step"):
            raise OSError("input/output error")
        return rename(source, target)

    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises(CheckpointError, match=r"could not be written: input/output error"):
        save(tmp_path, trainer, 1, score=0.5, keep=1)
    assert list((tmp_path / "checkpoints").iterdir()) == [path]
    assert load_checkpoint(latest_checkpoint(tmp_path) or tmp_path).score is None


def test_a_new_run_has_no_checkpoint(tmp_path: Path) -> None:
    assert latest_checkpoint(tmp_path) is None
    assert best_checkpoint(tmp_path) is None


@pytest.mark.parametrize("damage", ["truncate", "flip", "delete", "no manifest", "half a manifest"])
@pytest.mark.parametrize("name", ["trainer-0000-0001.safetensors", "rollout.npz", "policy/model.safetensors"])
def test_a_damaged_newest_checkpoint_is_passed_over_with_a_warning(
    damage: str, name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    _, trainer = make_trainer()
    older, newest = save(tmp_path, trainer, 1), save(tmp_path, trainer, 2)
    file = newest / name
    match damage:
        case "truncate":
            os.truncate(file, file.stat().st_size // 2)
        case "flip":
            content = bytearray(file.read_bytes())
            content[-3] ^= 1
            file.write_bytes(content)
        case "delete":
            file.unlink()
        case "no manifest":
            (newest / "manifest.json").unlink()
        case "half a manifest":
            os.truncate(newest / "manifest.json", 40)
    with caplog.at_level(logging.WARNING):
        assert latest_checkpoint(tmp_path) == older
    assert "step_000002" in caplog.text
    assert ("manifest.json" if "manifest" in damage else name) in caplog.text
    assert "going back" in caplog.text
    assert save(tmp_path, trainer, 2) == newest
    assert latest_checkpoint(tmp_path) == newest


@pytest.mark.parametrize("room", [10, 1000, 15_000])
def test_a_full_disk_leaves_the_older_checkpoint_and_the_run_can_go_on(room: int, tmp_path: Path) -> None:
    policy, trainer = make_trainer()
    older = save(tmp_path, trainer, 1, keep=1)
    train_iteration(policy, trainer, 1)
    assert max(file.stat().st_size for file in older.rglob("*")) > room
    with files_no_larger_than(room), pytest.raises(CheckpointError, match="could not be written"):
        save(tmp_path, trainer, 2, keep=1)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step_000001"]
    assert latest_checkpoint(tmp_path) == older
    train_iteration(policy, trainer, 2)
    assert latest_checkpoint(tmp_path) == older
    newest = save(tmp_path, trainer, 3, keep=1)
    assert list_checkpoints(tmp_path) == [newest]


def test_on_a_disk_that_is_really_full_nothing_is_lost(small_disk: Path) -> None:
    policy, trainer = make_trainer()
    train_iteration(policy, trainer, 0)
    older = save(small_disk, trainer, 1, keep=1)
    others = small_disk / "others"
    others.write_bytes(bytes(shutil.disk_usage(small_disk).free - 8192))
    train_iteration(policy, trainer, 1)
    with pytest.raises(CheckpointError, match="No space left on device"):
        save(small_disk, trainer, 2, keep=1)
    assert list((small_disk / "checkpoints").iterdir()) == [older]
    verify_checkpoint(older)
    others.unlink()
    newest = save(small_disk, trainer, 2, keep=1)
    assert list_checkpoints(small_disk) == [newest]
    assert load_checkpoint(newest, trainer=make_trainer()[1]).iteration == 2


def test_too_little_room_is_an_error_before_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, trainer = make_trainer()
    prepare_run(tmp_path, trainer=trainer, count=4)
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(checkpoint_module.shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(ValueError, match="has 1 kB free"):
        prepare_run(tmp_path, trainer=trainer, count=4)
    monkeypatch.setattr(checkpoint_module.shutil, "disk_usage", lambda path: usage._replace(free=2 * 10**9))
    prepare_run(tmp_path, trainer=trainer, count=4)
    with pytest.raises(ValueError, match=r"up to 4\.1 GB .*\(4 of 1 GB\)"):
        prepare_run(tmp_path, trainer=trainer, count=4, rollout_bytes=10**9)


def test_a_folder_that_cannot_be_written_to_is_an_error_before_training(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(ValueError, match="cannot be saved"):
        prepare_run(tmp_path / "file" / "run")
    with files_no_larger_than(0), pytest.raises(ValueError, match="cannot be saved"):
        prepare_run(tmp_path / "run")


def test_a_read_only_folder_is_an_error_before_training(read_only_folder: Path) -> None:
    with pytest.raises(ValueError, match="cannot be saved"):
        prepare_run(read_only_folder / "run")


def test_a_checkpoint_of_another_policy_is_refused(tmp_path: Path) -> None:
    _, trainer = make_trainer()
    path = save(tmp_path, trainer, 1)
    policy = SmallPolicy()
    policy.module.head = torch.nn.Linear(5, 5)
    other = GroupTrainer(OPTIM, AlgoConfig(), policy=policy, temperature=TEMPERATURE, total_steps=1, seed=0)
    with pytest.raises(ValueError, match=r"head\.weight has shape"):
        load_checkpoint(path, trainer=other)
    policy.module.extra = torch.nn.Linear(2, 2)
    other = GroupTrainer(OPTIM, AlgoConfig(), policy=policy, temperature=TEMPERATURE, total_steps=1, seed=0)
    with pytest.raises(ValueError, match=r"holds no|has shape"):
        load_checkpoint(path, trainer=other)


def test_a_folder_that_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="not a checkpoint"):
        verify_checkpoint(tmp_path)


SAVING_FOR_EVER = """
import sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from test_checkpoint import make_trainer, save
_, trainer = make_trainer()
for iteration in range(1, 100_000):
    save(Path({run!r}), trainer, iteration, keep=2)
    print(iteration, flush=True)
"""


def test_a_process_killed_while_it_saves_leaves_a_valid_checkpoint(tmp_path: Path) -> None:
    program = SAVING_FOR_EVER.format(tests=str(Path(__file__).parent), run=str(tmp_path))
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    random = np.random.default_rng()
    caught_in_the_middle = False
    for line in process.stdout:
        if int(line) == 3:
            break
    deadline = time.monotonic() + 30
    while not caught_in_the_middle and time.monotonic() < deadline:
        time.sleep(random.uniform(0, 0.01))
        process.send_signal(signal.SIGSTOP)
        caught_in_the_middle = any((tmp_path / "checkpoints").glob(".writing-step*"))
        if not caught_in_the_middle:
            process.send_signal(signal.SIGCONT)
    process.kill()
    process.wait()
    assert caught_in_the_middle
    newest = latest_checkpoint(tmp_path)
    assert newest == list_checkpoints(tmp_path)[-1]
    assert newest is not None
    assert load_checkpoint(newest, trainer=make_trainer()[1]).iteration >= 3
    prepare_run(tmp_path)
    assert not any((tmp_path / "checkpoints").glob(".*"))
