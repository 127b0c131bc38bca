"""Workers as Ray actors on another node: the same episodes, the same faults, the same ends."""

import itertools
import os
import signal
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from buggy_env import BUGS
from pipeline_envs import DrawingPolicy, assert_played_as_alone, drift_config, make_spec
from ray_nodes import TESTS, RayNodes

from vla_train.config import EnvConfig, RolloutConfig
from vla_train.envs.worker import WorkerError
from vla_train.envs.workers import make_workers
from vla_train.pipeline.rollout import Rollout
from vla_train.pipeline.timeline import Timeline
from vla_train.types import EpisodeSpec, Group

ray = pytest.importorskip("ray")

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("ray_nodes")]

FAULTS = ["raise", "hang", "nan", "shape", "die"]
CAUSES = {
    "raise": "ZeroDivisionError: the simulator broke",
    "hang": "no answer for 2 s",
    "nan": "reward of slot . is nan",
    "shape": r"must be uint8 of shape \(1, 4, 5, 3\)",
    "die": r"actor of worker \d died",
}


def make_rollout(env: EnvConfig) -> Rollout:
    workers = make_workers(env, chunk_size=DrawingPolicy.chunk_size)
    config = RolloutConfig(groups_per_iteration=2, group_size=4, max_attempts=5.0, deterministic=True)
    return Rollout(config, policy=DrawingPolicy(), workers=workers, timeline=Timeline(), seed=11)


def prompts() -> Iterator[tuple[EpisodeSpec, ...]]:
    return (tuple(make_spec(group, sample) for sample in range(4)) for group in itertools.count())


def mixed(group: Group) -> bool:
    return 0 < group.success_rate < 1


@pytest.mark.parametrize("fault", ["", *FAULTS])
def test_ray_workers_play_the_same_episodes_with_and_without_faults(fault: str, tmp_path: Path) -> None:
    kwargs = {"fault": fault, "marker": str(tmp_path)}
    env = drift_config(worker="ray", kwargs=kwargs, step_timeout_s=2.0 if fault == "hang" else 60.0)
    rollout = make_rollout(env)
    try:
        result = rollout.collect(prompts(), mixed)
    finally:
        rollout.close()
    assert [group.group_id for group in result.groups] == [4, 6]
    for group in result.groups:
        for trajectory in group.trajectories:
            assert_played_as_alone(trajectory, seed=11)
    assert result.stats.worker_restarts == (1 if fault else 0)
    assert result.stats.episodes_requeued == (3 if fault else 0)


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_that_never_ends_stops_the_run_with_its_cause(fault: str) -> None:
    timeout_s = 2.0 if fault == "hang" else 60.0
    env = drift_config(worker="ray", kwargs={"fault": fault}, num_workers=1, max_restarts=0, step_timeout_s=timeout_s)
    rollout = make_rollout(env)
    try:
        with pytest.raises(WorkerError, match=f"failed after 0 restarts: .*{CAUSES[fault]}"):
            rollout.collect(prompts(), mixed)
    finally:
        rollout.close()


def test_workers_run_on_nodes_that_offer_to_simulate(ray_nodes: RayNodes) -> None:
    from vla_train.distributed.ray import RayWorker

    workers = make_workers(drift_config(worker="ray"), chunk_size=3)
    try:
        assert [worker.node_id for worker in workers if isinstance(worker, RayWorker)] == [ray_nodes.sim_node] * 2
        assert ray_nodes.sim_node != ray_nodes.driver_node
    finally:
        for worker in workers:
            worker.close()


def test_an_env_that_cannot_be_made_in_an_actor_is_the_users_error() -> None:
    with pytest.raises(ValueError, match="Nonsense"):
        make_workers(drift_config(worker="ray", id="Nonsense-v0"), chunk_size=3)


@pytest.mark.parametrize(("method", "bug"), [("make", "shapes"), ("first reset", "value"), ("step", "import")])
def test_a_bug_of_an_env_in_an_actor_keeps_its_traceback_and_names_the_env(method: str, bug: str) -> None:
    env = drift_config(
        id="buggy_env:Buggy-v0", worker="ray", kwargs={"method": method, "bug": bug}, num_workers=1, max_restarts=0
    )
    with pytest.raises(WorkerError, match=rf"buggy_env:Buggy-v0.*{BUGS[bug]}") as failure:
        make_rollout(env).collect(prompts(), mixed)
    told = "".join(traceback.format_exception(failure.value.__cause__))
    assert "buggy_env.py" in told
    assert "in _visit" in told


def test_more_workers_than_the_cluster_has_room_for_are_refused() -> None:
    with pytest.raises(ValueError, match="'sim'"):
        make_workers(drift_config(worker="ray", num_workers=3), chunk_size=3)


def test_a_restarted_worker_waits_for_the_node_it_was_meant_for(
    ray_nodes: RayNodes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rollout = make_rollout(drift_config(worker="ray", kwargs={"fault": "die", "marker": str(tmp_path)}))
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"sim": 1.0})  # a node was lost
    try:
        assert rollout.collect(prompts(), mixed).stats.worker_restarts == 1
        assert [worker.node_id for worker in rollout._workers] == [ray_nodes.sim_node] * 2  # type: ignore[attr-defined]
    finally:
        rollout.close()


@pytest.mark.parametrize("signal_number", [signal.SIGINT, signal.SIGTERM])
def test_signals_end_a_run_cleanly_within_seconds(signal_number: int, tmp_path: Path, ray_nodes: RayNodes) -> None:
    script = tmp_path / "run.py"
    script.write_text(
        f"""
import signal, sys
import numpy as np
sys.path[:0] = [{str(Path(__file__).parent)!r}, {str(TESTS)!r}]
from pipeline_envs import drift_config
import test_ray_workers

def stop(*_):
    raise KeyboardInterrupt

if __name__ == "__main__":
    signal.signal(signal.SIGTERM, stop)
    rollout = test_ray_workers.make_rollout(drift_config(worker="ray", kwargs={{"seconds_per_step": "0.01"}}))
    print("ready", flush=True)
    try:
        while True:
            rollout.collect(test_ray_workers.prompts(), lambda group: True)
    except KeyboardInterrupt:
        np.savez({str(tmp_path / "state.npz")!r}, **rollout.state_dict())
        rollout.close()
        print("saved", flush=True)
"""
    )
    environment = {**os.environ, "RAY_ADDRESS": ray_nodes.address}
    process = subprocess.Popen(
        [sys.executable, str(script)], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline().strip() == "ready"
    time.sleep(0.5)
    process.send_signal(signal_number)
    output, errors = process.communicate(timeout=30)
    assert process.returncode == 0, errors
    assert output.strip() == "saved"
    assert "Traceback" not in errors
    with np.load(tmp_path / "state.npz", allow_pickle=False) as state:
        assert len(state["specs"]) > 0, "nothing was under way"


def test_an_address_at_which_no_cluster_is_is_named_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray itself looks for minutes, and hears no signal meanwhile; of some addresses it says only that they are wrong."""

    def init(**options: object) -> None:
        raise ValueError("Invalid address format: foo")

    from vla_train.distributed.ray import connect

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", init)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and does not listen
        silent = f"127.0.0.1:{taken.getsockname()[1]}"
        for address, said in {silent: "Connection refused", "foo": "Invalid address format: foo"}.items():
            monkeypatch.setenv("RAY_ADDRESS", address)
            with pytest.raises(WorkerError, match=rf"no Ray cluster can be joined or started \(RAY_ADDRESS\): .*{said}"):
                connect()
