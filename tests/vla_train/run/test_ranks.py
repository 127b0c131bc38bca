"""What ends a run of two ranks ends both, keeps what a run of one rank keeps, and the run goes on as if nothing had happened.

Faults happen on rank 1, in the middle of the third of four iterations: it plays group 5, rank 0 group 4.
"""

import ctypes
import functools
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rank_processes import run_ranks
from small_runs import saved_state, small_config

from vla_train.config import TrainConfig
from vla_train.errors import RunError
from vla_train.evaluation.evaluate import EpisodeResult, read_episodes
from vla_train.loop import iterate, set_up, train
from vla_train.pipeline.episodes import PromptStream, evaluation_episodes
from vla_train.run.lock import lock_run
from vla_train.run.tracking import read_records
from vla_train.trainer import parallel, saving, tensor_files
from vla_train.trainer.checkpoint_folder import list_checkpoints
from vla_train.trainer.group_trainer import UpdateMetrics
from vla_train.trainer.parallel import Ranks
from vla_train.trainer.roll_call import RollCall
from vla_train.types import Group

MakeRun = Callable[..., TrainConfig]
ONE_WORKER = {"num_workers": 1, "envs_per_worker": 4}
"""Batches are cut alike, so that even rounding is the same."""
SILENT_S = 8.0
GRACE_S = 60.0
"""A busy machine may take long to end a rank in order."""


def outcome(work: Callable[[], object]) -> str:
    """How it ended."""
    try:
        work()
    except SystemExit as stop:
        return f"exit {stop.code}"
    except (RunError, ValueError) as error:
        return f"{type(error).__name__}: {error}"
    return "done"


def train_all(ranks: Ranks, configs: Sequence[TrainConfig]) -> list[str]:
    """How this rank's part of each run ended, one after the other."""
    parallel.RollCall = functools.partial(parallel.RollCall, silent_s=SILENT_S, grace_s=GRACE_S)  # type: ignore[misc, assignment]
    return [outcome(functools.partial(train, config)) for config in configs]


def faulty(make: MakeRun, name: str, fault: str, **changes: Any) -> TrainConfig:
    """A run in which `fault` happens once."""
    config = make(env=ONE_WORKER, **changes)
    stream = PromptStream([0], {}, group_size=4, train_fraction=0.8, split_seed=0, seed=0, next_group_id=5)
    marker = config.output.with_name(f"{name}_happened")
    kwargs = {"fault": fault, "fault_seed": str(next(stream)[0].seed), "marker": str(marker)}
    return replace(config, output=config.output.with_name(name), env=replace(config.env, kwargs=kwargs))


def losses(config: TrainConfig) -> list[tuple[float, ...]]:
    names = ("iteration", "update/loss", "update/grad_norm", "rollout/success_rate", "rollout/groups_kept")
    return [tuple(record[name] for name in names) for record in read_records(config.output, "iteration")]


def assert_same(config: TrainConfig, expected: TrainConfig, *, exactly: bool) -> None:
    """The same losses and final state; up to rounding where the number of ranks was another."""
    rtol, atol = (0.0, 0.0) if exactly else (1e-4, 1e-6)  # a loss is the small difference of numbers of about 1
    np.testing.assert_allclose(losses(config), losses(expected), rtol=rtol, atol=atol)
    assert any(loss[2] > 0 for loss in losses(config)), "nothing was learnt, so nothing was compared"
    ours, theirs = (saved_state(run.output, run.iterations) for run in (config, expected))
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        np.testing.assert_allclose(value, theirs[name], err_msg=name, rtol=0, atol=0 if exactly else 2e-4)


@pytest.fixture(scope="module")
def unbroken(small_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> TrainConfig:
    """A run of two ranks from start to end."""
    config = small_config(small_checkpoint, tmp_path_factory.mktemp("unbroken") / "run", env=ONE_WORKER)
    assert run_ranks(train_all, 2, [config]) == [["done"], ["done"]]
    return config


def test_a_signal_to_one_rank_ends_both_with_a_checkpoint_from_which_they_go_on_to_the_bit(
    small_run: MakeRun, unbroken: TrainConfig
) -> None:
    terminated, interrupted = (faulty(small_run, fault, fault, checkpoint_every=3) for fault in ("terminate", "interrupt"))
    both = run_ranks(stopped_and_resumed, 2, [terminated, interrupted])
    assert both == [["exit 130", ["step_000002"], "done"] * 2] * 2
    assert_same(terminated, unbroken, exactly=True)
    assert_same(interrupted, unbroken, exactly=True)


def stopped_and_resumed(ranks: Ranks, configs: Sequence[TrainConfig]) -> list[object]:
    told: list[object] = []
    for config in configs:
        first = train_all(ranks, [config])
        ranks.barrier()
        saved = [path.name for path in list_checkpoints(config.output)]
        ranks.barrier()
        told += [*first, saved, *train_all(ranks, [config])]
    return told


def test_a_worker_that_is_lost_for_good_ends_both_ranks_and_another_number_of_them_goes_on(small_run: MakeRun) -> None:
    config = faulty(small_run, "failing", "raise", checkpoint_every=4)
    failing = replace(config, env=replace(config.env, max_restarts=0))
    first, second = run_ranks(train_all, 2, [failing])
    cause = "worker 0 (reach_env:Reach-v0) failed after 0 restarts: ZeroDivisionError: the simulator broke"
    kept = "2 iterations are saved, and the same command goes on from there"
    assert second == [f"WorkerError: {cause}; {kept}"]
    assert first == [f"WorkerError: rank 1: {cause}; {kept}"]
    train(replace(config, iterations=3))  # alone
    assert run_ranks(train_all, 2, [config]) == [["done"], ["done"]]
    alone = small_run(env=ONE_WORKER)
    train(alone)
    assert_same(config, alone, exactly=False)


def test_a_rank_that_is_gone_ends_the_other_and_they_go_on_from_the_newest_checkpoint(
    small_run: MakeRun, unbroken: TrainConfig
) -> None:
    gone = {"kill": "its process ended", "stop": f"it gave no sign of life for {SILENT_S:g} s"}
    configs = [faulty(small_run, fault, fault) for fault in gone]
    for config, how in zip(configs, gone.values(), strict=True):
        first, _ = run_ranks(train_all, 2, [config], lost=[1])
        said = f"RankLostError: rank 1 is gone: {how}; the same command goes on from step_00000"
        assert first in ([f"{said}1"], [f"{said}2"])  # the second one may just be being written
    assert run_ranks(train_all, 2, configs) == [["done"] * 2] * 2
    for config in configs:
        assert_same(config, unbroken, exactly=True)


def struck_while_writing(ranks: Ranks, config: TrainConfig, fault: str) -> list[str]:
    """Train; what rank 1 writes of the third checkpoint is struck, in the background."""
    written = tensor_files.save_file

    def save_file(tensors: Any, path: Path) -> None:
        if ranks.rank == 1 and path.parent.name.startswith(".writing-step_000003-"):
            assert threading.current_thread() is not threading.main_thread()
            if fault == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            raise OSError(28, "No space left on device")
        written(tensors, path)

    tensor_files.save_file = save_file
    saving.free_host_bytes = lambda: 1 << 40  # type: ignore[attr-defined]
    return train_all(ranks, [config])


def test_what_strikes_a_checkpoint_in_the_background_leaves_the_one_before_and_they_go_on_to_the_bit(
    small_run: MakeRun, unbroken: TrainConfig, tmp_path: Path
) -> None:
    full, killed = (replace(small_run(env=ONE_WORKER), output=tmp_path / fault) for fault in ("full", "kill"))
    cause = f"checkpoint {full.output}/checkpoints/step_000003 could not be written: [Errno 28] No space left on device"
    for (told,) in run_ranks(struck_while_writing, 2, full, "full"):
        assert told.startswith("CheckpointError: ")
        assert told.endswith(f"{cause}; older ones are as they were")
    (told,), _ = run_ranks(struck_while_writing, 2, killed, "kill", lost=[1])
    assert told == "RankLostError: rank 1 is gone: its process ended; the same command goes on from step_000002"
    for config in (full, killed):
        assert list_checkpoints(config.output)[-1].name == "step_000002"
    assert run_ranks(train_all, 2, [full, killed]) == [["done"] * 2] * 2
    assert_same(full, unbroken, exactly=True)
    assert_same(killed, unbroken, exactly=True)


def signalled_around_updates(ranks: Ranks, config: TrainConfig) -> list[str]:
    """All ranks get each signal twice, as from torchrun inside of SLURM; rank 1 before an update, rank 0 after it."""
    run = set_up(config)
    method = "update" if ranks.rank else "record"
    work = getattr(run, method)

    def signalled(*arguments: object) -> object:
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)
        return work(*arguments)

    setattr(run, method, signalled)
    return [outcome(functools.partial(iterate, run)), *train_all(ranks, [config])]


def test_signals_to_all_ranks_let_them_finish_the_update_and_save_once(small_run: MakeRun, unbroken: TrainConfig) -> None:
    config = small_run(env=ONE_WORKER, checkpoint_every=4)
    assert run_ranks(signalled_around_updates, 2, config) == [["exit 130", "done"]] * 2
    assert_same(config, unbroken, exactly=True)


def test_an_evaluation_of_two_ranks_goes_on_with_what_neither_has_played(small_run: MakeRun, tmp_path: Path) -> None:
    changes = {"iterations": 1, "eval": {"every": 1, "before_training": True, "episodes_per_task": 12, "videos": 0}}
    specs = evaluation_episodes([0], {}, small_run(**changes).eval, temperature=0.0, train_fraction=0.8, split_seed=0)
    config = faulty(small_run, "evaluated", "terminate", **changes)
    kwargs = {**config.env.kwargs, "fault_seed": str(specs[-1].seed)}
    config = replace(config, env=replace(config.env, kwargs=kwargs, envs_per_worker=2))
    assert run_ranks(train_all, 2, [config]) == [["exit 130"], ["exit 130"]]
    before = journals(config)
    assert len(before["rank_1/episodes.jsonl"]) >= 2

    for size in (1, 2, 3):
        rollout = replace(config.rollout, groups_per_iteration=size)
        resumed = replace(config, output=tmp_path / f"on_{size}", rollout=rollout)
        shutil.copytree(config.output, resumed.output)
        if size == 1:
            train(resumed)
        else:
            assert run_ranks(train_all, size, [resumed]) == [["done"]] * size
        after = journals(resumed)
        assert all(after[name][: len(episodes)] == episodes for name, episodes in before.items())
        assert sorted(episode.seed for episodes in after.values() for episode in episodes) == [spec.seed for spec in specs]
        assert [record["episodes"] for record in read_records(resumed.output, "eval")] == [12, 12]


def trained_on(ranks: Ranks, config: TrainConfig) -> tuple[str, list[int]]:
    """How a part of a run ended, and the groups that this rank's updates learnt from."""
    run = set_up(config)
    groups_seen: list[int] = []
    update = run.update

    def noted(groups: tuple[Group, ...]) -> UpdateMetrics:
        groups_seen.extend(group.group_id for group in groups)
        return update(groups)

    run.update = noted  # type: ignore[method-assign]
    return outcome(functools.partial(iterate, run)), groups_seen


def test_ranks_that_play_ahead_train_on_each_group_once_also_on_another_number_of_ranks(small_run: MakeRun) -> None:
    everything = {"deterministic": False, "min_success_rate": 0.0, "max_success_rate": 1.0}
    config = faulty(small_run, "ahead", "terminate", rollout=everything, checkpoint_every=100)
    (ended, first), (also_ended, second) = run_ranks(trained_on, 2, config)
    assert ended == also_ended == "exit 130"
    assert first == [0, 2, 4][: len(first)]
    assert second == [1, 3, 5][: len(second)]
    (path,) = list_checkpoints(config.output)
    with np.load(path / "rollout.npz") as begun:
        assert {group_id for group_id in begun["specs"][:, 0].tolist() if group_id >= 2 * len(first)}

    three = replace(config, iterations=6, rollout=replace(config.rollout, groups_per_iteration=3))
    for rank, (ended, seen) in enumerate(run_ranks(trained_on, 3, three)):
        left = [group_id for group_id in range(rank, 99, 3) if group_id not in first + second]
        assert ended == "done"
        assert seen == left[: 6 - len(first)]


def prepared_for(ranks: Ranks, config: TrainConfig) -> list[list[bool]]:
    """Whether updates were prepared before the next rollout: with groups on both ranks, and with groups on one alone."""
    told = []
    for having_groups in ([0, 1], [0]):
        run = set_up(replace(config, output=config.output.with_name(f"of_{len(having_groups)}")))
        prepared: list[bool] = []
        run.trainer.prepare_for = lambda groups, prepared=prepared: prepared.append(bool(groups))  # type: ignore[method-assign]
        groups = run.collect().groups
        run.begin_next(groups if ranks.rank in having_groups else ())
        run.close()
        told.append(prepared)
    return told


def test_ranks_prepare_updates_together_or_not_at_all(small_run: MakeRun) -> None:
    ahead = {"deterministic": False, "max_staleness": 1, "min_success_rate": 0.0, "max_success_rate": 1.0}
    assert run_ranks(prepared_for, 2, small_run(env=ONE_WORKER, rollout=ahead)) == [[[True], []]] * 2


def journals(config: TrainConfig) -> dict[str, list[EpisodeResult]]:
    """What each rank wrote down of the evaluation before training."""
    folder = config.output / "evaluations" / "iteration_000000"
    return {str(path.relative_to(folder)): read_episodes(path) for path in sorted(folder.rglob("episodes.jsonl"))}


def refused_by_one(ranks: Ranks, config: TrainConfig) -> list[str]:
    told = train_all(ranks, [config])
    if ranks.rank == 0:
        os._exit(2)
    return told


def test_a_rank_that_cannot_be_set_up_ends_the_other(small_run: MakeRun) -> None:
    config = small_run()
    unlock = lock_run(config.output)
    try:
        _, (second,) = run_ranks(refused_by_one, 2, config, lost=[0])
    finally:
        unlock()
    refused = f"another process trains in {config.output}: wait until it has ended, or choose another output"
    assert second == f"RankLostError: rank 0 ended: ValueError: {refused}; nothing was begun"


def wait_for_ever(ranks: Ranks, last_words: Path) -> None:
    """Rank 1 says that it ends, and rank 0 waits for it in a collective."""
    roll_call = ranks.roll_call
    assert roll_call is not None
    roll_call.kept = lambda: str(last_words.write_text(str(roll_call.lost)))
    roll_call._grace_s = 0.0
    if ranks.rank == 1:
        roll_call.leave("its memory is too small")
        signal.pause()
    ranks.barrier()


def test_a_collective_that_never_ends_keeps_no_process(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="rank 0 died"):
        run_ranks(wait_for_ever, 2, tmp_path / "last_words")
    assert (tmp_path / "last_words").read_text() == "rank 1 ended: its memory is too small"


def wait_within_a_call(ranks: Ranks) -> None:
    """Rank 1 ends; rank 0 waits in a call that lets no other thread run, as for a place in a GPU's queue."""
    roll_call = ranks.roll_call
    assert roll_call is not None
    roll_call._silent_s, roll_call._grace_s = 2.0, 0.0
    if ranks.rank == 1:
        time.sleep(1.5)
        roll_call.leave("its memory is too small")
        signal.pause()
    time.sleep(1.5)  # its thread says once more that it lives
    ctypes.PyDLL(None).pause()


def wait_after_the_end(ranks: Ranks) -> str:
    """The same call of a rank that has nothing left to do with the others."""
    roll_call = ranks.roll_call
    assert roll_call is not None
    roll_call._silent_s, roll_call._grace_s = 2.0, 0.0
    time.sleep(1.5)
    roll_call.leave()
    ctypes.PyDLL(None).sleep(4)
    return "done"


def wait_after_the_others(ranks: Ranks) -> str:
    """The same call of a rank whose others have nothing left to do."""
    roll_call = ranks.roll_call
    assert roll_call is not None
    roll_call._silent_s, roll_call._grace_s = 2.0, 0.0
    if ranks.rank == 1:
        roll_call.leave()
        os._exit(0)
    time.sleep(3)
    ctypes.PyDLL(None).sleep(4)
    return "done"


def test_a_rank_that_has_left_may_take_its_time() -> None:
    assert run_ranks(wait_after_the_end, 2) == ["done"] * 2


def test_a_rank_that_the_others_have_left_may_take_its_time() -> None:
    assert run_ranks(wait_after_the_others, 2, lost=[1])[0] == "done"


def test_what_is_kept_is_said_once() -> None:
    roll_call = RollCall(0, {})
    roll_call.kept = lambda: "nothing was saved yet"
    assert roll_call.with_kept("rank 1 is gone") == "rank 1 is gone; nothing was saved yet"
    told = "rank 1 ended: its memory is too small; nothing was saved yet"
    assert roll_call.with_kept(told) == told


def test_a_call_that_stops_all_threads_keeps_no_process() -> None:
    with pytest.raises(AssertionError, match="rank 0 died"):
        run_ranks(wait_within_a_call, 2)


def test_what_was_ended_within_a_call_is_said_after_its_traceback() -> None:
    waiting = """
import ctypes, socket, time
from vla_train.trainer.roll_call import RollCall
ours, theirs = socket.socketpair()
RollCall(0, {1: ours}, silent_s=2.0, grace_s=0.0)
time.sleep(1.5)
ctypes.PyDLL(None).pause()
"""
    ended = subprocess.run([sys.executable, "-c", waiting], stderr=subprocess.PIPE, text=True, check=False)
    *traceback, last = ended.stderr.splitlines()
    assert 'File "<string>", line 7 in <module>' in "".join(traceback)
    assert last == (
        "error: rank 0 waited in a call that lets no other thread run, as for a GPU where another rank is gone; "
        "the same command goes on from the newest checkpoint"
    )
    assert ended.returncode == 1
