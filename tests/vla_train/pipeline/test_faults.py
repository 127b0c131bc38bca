"""Workers that raise, die, hang or return nonsense: the same episodes come out, or the run stops with the cause."""

import contextlib
import itertools
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from pipeline_envs import DrawingPolicy, assert_played_as_alone, drift_config, make_spec

import vla_train.envs.process
import vla_train.envs.worker
from vla_train.config import EnvConfig, RolloutConfig
from vla_train.envs.worker import WorkerError
from vla_train.envs.workers import make_workers
from vla_train.pipeline.rollout import Rollout
from vla_train.pipeline.timeline import Timeline
from vla_train.types import EpisodeSpec, Group

FAULTS = [
    *[("thread", fault) for fault in ("raise", "hang", "nan", "shape")],
    *[("process", fault) for fault in ("raise", "hang", "nan", "shape", "die")],
]
CAUSES = {
    "raise": "ZeroDivisionError: the simulator broke",
    "hang": "no answer for 1.5 s",
    "nan": "reward of slot . is nan",
    "shape": r"must be uint8 of shape \(1, 4, 5, 3\)",
    "die": "killed by signal 9",
}


def make_rollout(env: EnvConfig) -> Rollout:
    workers = make_workers(env, chunk_size=DrawingPolicy.chunk_size)
    config = RolloutConfig(groups_per_iteration=3, group_size=4, max_attempts=5.0, deterministic=True)
    return Rollout(config, policy=DrawingPolicy(), workers=workers, timeline=Timeline(), seed=11)


def prompts() -> Iterator[tuple[EpisodeSpec, ...]]:
    return (tuple(make_spec(group, sample) for sample in range(4)) for group in itertools.count())


def mixed(group: Group) -> bool:
    return 0 < group.success_rate < 1


@pytest.fixture(scope="module")
def undisturbed_groups() -> list[int]:
    rollout = make_rollout(drift_config())
    groups = [group.group_id for group in rollout.collect(prompts(), mixed).groups]
    rollout.close()
    return groups


def faulty_config(worker: str, fault: str, marker: Path | None, **changes: Any) -> EnvConfig:
    kwargs = {"fault": fault, **({} if marker is None else {"marker": str(marker), "fault_times": "2"})}
    timeout = 1.5 if fault == "hang" else 30.0
    return drift_config(worker=worker, kwargs=kwargs, step_timeout_s=timeout, **changes)


@pytest.mark.parametrize(("worker", "fault"), FAULTS)
def test_a_fault_changes_no_episode(
    worker: str, fault: str, tmp_path: Path, undisturbed_groups: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    rollout = make_rollout(faulty_config(worker, fault, tmp_path))
    try:
        with caplog.at_level(logging.WARNING):
            result = rollout.collect(prompts(), mixed)
    finally:
        rollout.close()
    assert [group.group_id for group in result.groups] == undisturbed_groups
    for group in result.groups:
        for trajectory in group.trajectories:
            assert_played_as_alone(trajectory, seed=11)
    assert 1 <= result.stats.worker_restarts <= 2  # two slots may fail in one chunk
    assert result.stats.episodes_requeued >= result.stats.worker_restarts
    assert len([record for record in caplog.records if "start again" in record.message]) == result.stats.worker_restarts


@pytest.mark.parametrize("fault", ["raise", "hang", "shape"])
def test_a_fault_while_an_episode_is_reset_changes_no_episode(
    fault: str, tmp_path: Path, undisturbed_groups: list[int]
) -> None:
    # Making a worker resets one env: the first visit must not be the fault.
    config = faulty_config("thread", fault, tmp_path)
    rollout = make_rollout(replace(config, kwargs={**config.kwargs, "fault_step": "0", "spared_resets": "2"}))
    try:
        result = rollout.collect(prompts(), mixed)
    finally:
        rollout.close()
    assert [group.group_id for group in result.groups] == undisturbed_groups
    for group in result.groups:
        for trajectory in group.trajectories:
            assert_played_as_alone(trajectory, seed=11)
    assert result.stats.worker_restarts >= 1


@pytest.mark.parametrize(("worker", "fault"), FAULTS)
def test_a_fault_that_never_ends_stops_the_run_with_its_cause(worker: str, fault: str) -> None:
    rollout = make_rollout(faulty_config(worker, fault, None, max_restarts=1, num_workers=1))
    try:
        for _ in range(2):  # asking again neither hangs nor hides the cause
            with pytest.raises(WorkerError, match=f"failed after 1 restarts: .*{CAUSES[fault]}"):
                rollout.collect(prompts(), mixed)
    finally:
        rollout.close()


def test_a_simulator_that_breaks_again_and_again_but_plays_in_between_never_ends_the_run() -> None:
    rollout = make_rollout(drift_config(kwargs={"fault": "raise", "fault_step": "0", "spared_resets": "4"}, num_workers=1))
    try:
        restarts = sum(rollout.collect(prompts(), lambda group: True).stats.worker_restarts for _ in range(10))
    finally:
        rollout.close()
    assert restarts > drift_config().max_restarts


def test_an_episode_that_can_never_be_played_ends_the_run_though_others_can() -> None:
    rollout = make_rollout(drift_config(kwargs={"fault": "raise", "fault_seed": str(make_spec(2).seed)}))
    try:
        with pytest.raises(WorkerError, match="failed after 3 restarts: ZeroDivisionError"):
            rollout.collect(prompts(), lambda group: False)
    finally:
        rollout.close()


def test_the_traceback_of_a_fault_is_logged_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rollout = make_rollout(faulty_config("thread", "raise", tmp_path, num_workers=1, envs_per_worker=1))
    try:
        with caplog.at_level(logging.WARNING):
            rollout.collect(prompts(), mixed)
    finally:
        rollout.close()
    records = [record for record in caplog.records if "start again" in record.message]
    assert len(records) == 2
    assert all("pipeline_envs:Drift-v0" in record.message for record in records)
    assert caplog.text.count("Traceback") == 1
    assert "the simulator broke" in caplog.text


def test_restarts_in_an_evaluation_are_reported_with_the_next_iteration(tmp_path: Path) -> None:
    rollout = make_rollout(faulty_config("thread", "raise", tmp_path))
    try:
        list(rollout.play((make_spec(group) for group in range(4)), temperature=0.0))
        played = rollout.collect(prompts(), mixed).stats
        again = rollout.collect(itertools.islice(prompts(), 100, None), mixed).stats
    finally:
        rollout.close()
    assert played.worker_restarts >= 1
    assert played.episodes_requeued >= 1
    assert again.worker_restarts == 0


def test_a_process_killed_while_the_policy_decides_or_the_trainer_trains_is_replaced(undisturbed_groups: list[int]) -> None:
    rollout = make_rollout(drift_config(worker="process", max_restarts=20))
    children = psutil.Process().children(recursive=True)
    victims = [child for child in children if "spawn_main" in " ".join(child.cmdline())]
    assert len(victims) == 2
    try:
        victims[0].send_signal(signal.SIGKILL)  # between two iterations
        groups = []

        def kill_another() -> None:
            time.sleep(0.05)
            victims[1].send_signal(signal.SIGKILL)

        killer = threading.Thread(target=kill_another)
        killer.start()
        groups = [group.group_id for group in rollout.collect(prompts(), mixed).groups]
        killer.join()
    finally:
        rollout.close()
    assert groups == undisturbed_groups


def test_an_env_that_cannot_be_made_is_an_error_before_anything_starts() -> None:
    before = threading.active_count()
    for worker in ("thread", "process"):
        for changes, message in (
            ({"id": "Nonsense-v0"}, "Nonsense"),
            ({"image_key": "camera"}, "set env.image_key"),
            ({"kwargs": {"colour": "red"}}, "colour"),
        ):
            with pytest.raises((ValueError, TypeError), match=message):
                make_workers(drift_config(worker=worker, **changes), chunk_size=3)
    deadline = time.monotonic() + 10
    while threading.active_count() > before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert threading.active_count() == before


@pytest.mark.parametrize("worker", ["thread", "process"])
def test_closing_leaves_neither_threads_nor_processes_nor_shared_memory(worker: str) -> None:
    threads, shared = threading.active_count(), set(os.listdir("/dev/shm"))
    children = len(psutil.Process().children(recursive=True))
    rollout = make_rollout(drift_config(worker=worker))
    rollout.collect(prompts(), mixed)
    rollout.close()
    assert threading.active_count() == threads
    assert len(psutil.Process().children(recursive=True)) <= children + 1  # multiprocessing keeps its resource tracker
    assert not {name for name in set(os.listdir("/dev/shm")) - shared if name.startswith("vla_train_")}


@pytest.mark.parametrize("worker", ["thread", "process"])
def test_closing_does_not_wait_for_workers_that_hang(worker: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (vla_train.envs.worker, vla_train.envs.process):
        monkeypatch.setattr(module, "CLOSE_TIMEOUT_S", 0.5)
    rollout = make_rollout(drift_config(worker=worker, kwargs={"fault": "hang", "fault_step": "1"}))
    rollout.prefetch(prompts())

    def collect() -> None:
        with contextlib.suppress(RuntimeError):
            rollout.collect(prompts(), mixed)

    thread = threading.Thread(target=collect)
    thread.start()
    time.sleep(0.5)  # by now all hang
    rollout.close()
    thread.join(timeout=20)
    assert not thread.is_alive()


def test_a_process_may_have_children_of_its_own() -> None:
    rollout = make_rollout(drift_config(worker="process", kwargs={"vectorization_mode": "async"}, envs_per_worker=2))
    try:
        for trajectory in rollout.play((make_spec(group) for group in range(4)), temperature=0.0):
            assert_played_as_alone(trajectory, seed=None)
    finally:
        rollout.close()


def test_a_program_that_forgets_to_close_its_processes_still_ends(tmp_path: Path) -> None:
    script = tmp_path / "forgetful.py"
    script.write_text(
        f"""
import sys
sys.path[:0] = [{str(Path(__file__).parent)!r}, {str(Path(__file__).parents[1])!r}]
from pipeline_envs import drift_config
import test_faults

if __name__ == "__main__":
    rollout = test_faults.make_rollout(drift_config(worker="process"))
    print("up", flush=True)
"""
    )
    output = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=60, check=True)
    assert output.stdout.strip() == "up"


def test_closing_from_another_thread_ends_a_collect_under_way() -> None:
    rollout = make_rollout(drift_config(kwargs={"seconds_per_step": "0.01"}))
    errors: list[BaseException] = []

    def collect() -> None:
        try:
            rollout.collect(prompts(), lambda group: False)
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=collect)
    thread.start()
    time.sleep(0.2)
    rollout.close()
    thread.join(timeout=20)
    assert not thread.is_alive()
    assert isinstance(errors[0], RuntimeError)


@pytest.mark.parametrize("worker", ["thread", "process"])
@pytest.mark.parametrize("signal_number", [signal.SIGINT, signal.SIGTERM])
def test_signals_end_a_run_cleanly_within_seconds(worker: str, signal_number: int, tmp_path: Path) -> None:
    """As the training loop does: the signal raises in the main thread, state is saved, workers are closed."""
    script = tmp_path / "run.py"
    script.write_text(
        f"""
import itertools, signal, sys
import numpy as np
sys.path[:0] = [{str(Path(__file__).parent)!r}, {str(Path(__file__).parents[1])!r}]
from pipeline_envs import drift_config
import test_faults

def stop(*_):
    raise KeyboardInterrupt

if __name__ == "__main__":
    signal.signal(signal.SIGTERM, stop)
    rollout = test_faults.make_rollout(drift_config(worker={worker!r}, kwargs={{"seconds_per_step": "0.01"}}))
    print("ready", flush=True)
    try:
        while True:
            rollout.collect(test_faults.prompts(), lambda group: True)
    except KeyboardInterrupt:
        np.savez({str(tmp_path / "state.npz")!r}, **rollout.state_dict())
        rollout.close()
        print("saved", flush=True)
"""
    )
    process = subprocess.Popen(
        [sys.executable, str(script)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    assert process.stdout is not None
    assert process.stdout.readline().strip() == "ready"
    time.sleep(0.3)
    os.killpg(process.pid, signal_number)  # as a terminal and a batch system do: to the children, too
    output, errors = process.communicate(timeout=20)
    assert process.returncode == 0, errors
    assert output.strip() == "saved"
    assert "Traceback" not in errors
    resumed = make_rollout(drift_config())
    with np.load(tmp_path / "state.npz", allow_pickle=False) as state:
        resumed.load_state_dict(state)
    begun = sorted({spec.group_id for group in resumed._sampling.pending() for spec in group.specs})
    assert begun, "nothing was under way"
    going_on = itertools.islice(prompts(), begun[-1] + 1, None)
    try:
        groups = resumed.collect(going_on, lambda group: True).groups
    finally:
        resumed.close()
    assert [group.group_id for group in groups] == list(range(begun[0], begun[0] + 3))
