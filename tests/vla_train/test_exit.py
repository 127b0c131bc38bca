"""How a command ends that cannot go on: one line, status 1, and what the line says is saved is saved."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from small_runs import command_line, run_command

from vla_train.cli import main
from vla_train.config import TrainConfig
from vla_train.evaluation import evaluate as evaluate_module
from vla_train.policy.simplevla_oft.policy import SimpleVLAOFTPolicy
from vla_train.run.run import Run
from vla_train.run.tracking import RunLog
from vla_train.trainer.checkpoint_folder import list_checkpoints
from vla_train.trainer.group_trainer import GroupTrainer

MakeRun = Callable[..., TrainConfig]


@pytest.fixture
def ended(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Runs a command that must end with status 1, and returns what it wrote to standard error."""

    def run(*arguments: str) -> str:
        with pytest.raises(SystemExit) as stop:
            main(arguments)
        assert stop.value.code == 1
        return capsys.readouterr().err

    return run


def one_line(errors: str) -> str:
    assert "Traceback" not in errors
    line = errors.strip().splitlines()[-1]
    assert line.startswith("error: ")
    return line


def test_a_diverged_loss_goes_back_to_the_newest_checkpoint(small_run: MakeRun, ended, monkeypatch) -> None:
    update, updates = GroupTrainer.update, iter(range(9))

    def diverge(trainer: GroupTrainer, groups, **options):
        if next(updates) == 1:
            for parameter in trainer._module.parameters():
                parameter.data.fill_(float("nan"))
        return update(trainer, groups, **options)

    monkeypatch.setattr(GroupTrainer, "update", diverge)
    config = small_run()
    line = one_line(ended("train", *command_line(config)))
    assert "the loss is nan" in line
    assert "the same command goes on from step_000001; lower optim.learning_rate first" in line
    assert [path.name for path in list_checkpoints(config.output)] == ["step_000001"]
    monkeypatch.undo()
    main(["train", *command_line(config)])
    assert list_checkpoints(config.output)[-1].name == "step_000004"


def test_weights_that_give_no_log_probs_end_the_run_in_one_line(small_run: MakeRun, ended, monkeypatch) -> None:
    def diverged(policy: SimpleVLAOFTPolicy, *arguments: object) -> object:
        indices, logprobs = decide(policy, *arguments)
        return indices, logprobs * float("nan")

    decide = SimpleVLAOFTPolicy._decide
    monkeypatch.setattr(SimpleVLAOFTPolicy, "_decide", diverged)
    line = one_line(ended("train", *command_line(small_run())))
    assert "its weights have diverged; the same command starts again: nothing was saved yet" in line


def test_a_disk_that_fills_while_a_checkpoint_is_written(small_run: MakeRun, ended, monkeypatch) -> None:
    def full(run: Run) -> None:
        shutil.rmtree(run.config.output / "checkpoints")
        (run.config.output / "checkpoints").touch()  # nothing can be written into it
        save(run)

    save = Run.save
    monkeypatch.setattr(Run, "save", full)
    assert "could not be written" in one_line(ended("train", *command_line(small_run())))


@pytest.mark.parametrize("what", ["metrics", "video"])
def test_a_disk_that_fills_while_results_are_written(what: str, small_run: MakeRun, ended, monkeypatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device", "somewhere")

    if what == "metrics":
        monkeypatch.setattr(RunLog, "log", full)
    else:
        monkeypatch.setattr(evaluate_module, "write_video", full)
    config = small_run(eval={"every": 1, "episodes_per_task": 1})
    line = one_line(ended("train", *command_line(config)))
    assert f"{config.output} cannot be written to ([Errno 28] No space left on device: 'somewhere'); the same command" in line


def test_a_gpu_whose_memory_is_too_small_for_an_update(small_run: MakeRun, ended, monkeypatch) -> None:
    def too_much(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 102.00 MiB. GPU 0 has a total capacity of ...")

    monkeypatch.setattr(GroupTrainer, "update", too_much)
    line = one_line(ended("train", *command_line(small_run())))
    assert "the GPU's memory is too small (CUDA out of memory): take --policy.base-dtype fp8" in line
    assert "the same command starts again" in line


def test_a_gpu_whose_memory_is_too_small_for_the_policy(small_run: MakeRun, ended, monkeypatch) -> None:
    def too_much(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 15.00 GiB.")

    monkeypatch.setattr("vla_train.run.run.build_policies", too_much)
    assert "the GPU's memory is too small (CUDA out of memory): take" in one_line(ended("train", *command_line(small_run())))


def test_an_evaluation_whose_disk_fills_ends_in_one_line(
    small_checkpoint: Path, tmp_path: Path, ended, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device", "somewhere")

    monkeypatch.setattr(evaluate_module, "write_video", full)
    options = ["--env.id", "reach_env:Reach-v0", "--env.success", "terminated"]
    options += ["--policy.chunk-size", "2", "--eval.episodes-per-task", "1"]
    errors = ended("eval", "--checkpoint", str(small_checkpoint), "--output", str(tmp_path / "results"), *options)
    assert "No space left on device" in one_line(errors)


def test_an_env_that_fails_too_often_ends_the_run_with_its_traceback_and_one_line(small_run: MakeRun) -> None:
    env = {"id": "buggy_env:Buggy-v0", "kwargs": {"method": "step", "bug": "shapes"}, "max_restarts": 0}
    config = small_run(env=env)
    ended = run_command("train", *command_line(config))
    assert ended.returncode == 1
    assert "buggy_env.py" in ended.stderr
    last = ended.stderr.strip().splitlines()[-1]
    assert last.startswith("error: worker ")
    assert "buggy_env:Buggy-v0" in last
    assert "ValueError: operands could not be broadcast" in last
    assert "0 iterations are saved, and the same command goes on from there" in last
    assert list_checkpoints(config.output)[-1].name == "step_000000"


def test_a_worker_that_fails_without_a_bug_is_one_line(small_run: MakeRun) -> None:
    config = small_run(env={"id": "dying_env:Dying-v0", "worker": "process", "max_restarts": 0})
    ended = run_command("train", *command_line(config))
    assert ended.returncode == 1
    assert "killed by signal 9" in one_line(ended.stderr)


@pytest.mark.parametrize("worker", ["thread", "process"])
def test_a_bug_met_while_the_env_is_made_ends_with_its_traceback_and_leaves_no_folder(worker: str, small_run: MakeRun) -> None:
    env = {"id": "buggy_env:Buggy-v0", "kwargs": {"method": "make", "bug": "shapes"}, "worker": worker}
    config = small_run(env=env)
    ended = run_command("train", *command_line(config))
    assert ended.returncode == 1
    assert "np.zeros(3) + np.zeros(4)" in ended.stderr
    assert ended.stderr.strip().splitlines()[-1].startswith("error: buggy_env:Buggy-v0 cannot be made: ValueError: operands")
    assert not config.output.exists()


def test_a_run_that_compiles_says_so_before_it_is_silent(
    small_run: MakeRun, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from vla_train.policy.simplevla_oft import SimpleVLAOFT

    monkeypatch.setattr(SimpleVLAOFT, "compile_blocks", lambda model: None)  # a minute that this test does not need
    main(["train", *command_line(small_run(policy={"compile": True}, iterations=2, display="plain"))])
    shown = capsys.readouterr().out
    for what in ("sampling", "updates"):
        assert shown.count(f"compiling the policy for {what}: this takes about a minute") == 1
    assert shown.index("compiling the policy for sampling") < shown.index("iteration 1/2")
