"""vla-eval's LIBERO benchmark, on stock LIBERO, against our envs: it sends what we observe, and plays what we play.

vla-eval is imported from its own environment, behind this one's libraries: both are needed in one process.
"""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import anyio
import gymnasium as gym
import numpy as np
import pytest
from real_clients import VLA_EVAL
from served import serving

from vla_envs.libero.suites import benchmark_suite
from vla_train.config import PolicyConfig, RolloutConfig
from vla_train.envs.workers import make_workers
from vla_train.pipeline.rollout import Rollout
from vla_train.pipeline.timeline import Timeline
from vla_train.policy.factory import policy_factory
from vla_train.recipes.demo import demo
from vla_train.serving.config import ServeConfig
from vla_train.types import EpisodeSpec
from vla_train.wire import vla_eval as wire

SUITE, TASK, STEPS = "libero_90", 33, 24
LOCAL = replace(demo().policy, device="cpu", checkpoint="demo")
PLAYED: list[list[float]] = []
"""Actions that the benchmark was told to play."""


@pytest.fixture(scope="module", autouse=True)
def vla_eval() -> None:
    where = "import sysconfig; print(sysconfig.get_path('purelib'))"
    sys.path.append(subprocess.run([VLA_EVAL, "-c", where], capture_output=True, text=True, check=True).stdout.strip())
    sys.path.append(str(Path(__file__).parent))
    benchmark_suite(SUITE)  # LIBERO's own configuration, which it would ask for on the terminal


def benchmark_class() -> Any:
    from vla_eval.benchmarks.libero.benchmark import LIBEROBenchmark

    return LIBEROBenchmark


def __getattr__(name: str) -> Any:
    """The benchmark, noting what it plays; made late, since vla-eval is found late."""
    if name != "NotingBenchmark":
        raise AttributeError(name)
    stock = benchmark_class()

    class NotingBenchmark(stock):
        def get_tasks(self) -> list[Any]:
            return [task for task in super().get_tasks() if task["task_id"] == TASK]

        def step(self, action: Any) -> Any:
            PLAYED.append(np.asarray(action["actions"]).tolist())
            return super().step(action)

    return NotingBenchmark


def test_its_client_sends_what_our_env_observes() -> None:
    asked = wire.server_hello("", ("image", "wrist_image", "state"))["observation_params"]
    benchmark = benchmark_class()(suite=SUITE, **asked)
    (task,) = [task for task in benchmark.get_tasks() if task["task_id"] == TASK]
    anyio.run(benchmark.start_episode, {**task, "episode_idx": 0})
    sent = anyio.run(benchmark.get_observation)
    benchmark.cleanup()
    kwargs: dict[str, Any] = {"suite": SUITE, "task_ids": [TASK], "cameras": ("agentview", "wrist")}
    envs = gym.make_vec("Libero-v0", num_envs=1, **kwargs)
    ours, _ = envs.reset(seed=0, options={"task_id": np.array([TASK]), "init_state_id": np.array([0])})
    envs.close()
    arrays, instruction = wire.read_observation(sent, ("image", "wrist_image", "state"))
    assert instruction == ours["instruction"][0]
    for key in ("image", "wrist_image"):
        np.testing.assert_array_equal(arrays[key], ours[key][0])
    np.testing.assert_allclose(arrays["state"], ours["state"][0], atol=1e-5)


def test_an_episode_of_vla_evals_own_orchestrator_is_ours(tmp_path: Path) -> None:
    from vla_eval.orchestrator import Orchestrator

    config = ServeConfig(checkpoint="demo", protocol="vla-eval", port=0, policy=replace(LOCAL, checkpoint=None))
    entry = {
        "benchmark": f"{__name__}:NotingBenchmark",
        "params": {"suite": SUITE, "seed": 0},
        "episodes_per_task": 1,
        "max_steps": STEPS,
    }
    with serving(config) as url:
        run = {"server": {"url": url, "timeout": 60}, "output_dir": str(tmp_path), "render": "cpu", "benchmarks": [entry]}
        (result,) = anyio.run(Orchestrator(run, no_save=True).run)
    ((episode,),) = [task["episodes"] for task in result["tasks"]]
    env = replace(
        demo().env,
        kwargs={"suite": SUITE, "task_ids": f"[{TASK}]", "detail": "full"},
        num_workers=1,
        envs_per_worker=1,
        max_episode_steps=STEPS,
    )
    success, actions = played_here(env, LOCAL)
    assert episode["metrics"]["success"] == success
    assert episode["steps"] == len(PLAYED) == len(actions)
    np.testing.assert_allclose(PLAYED, actions, atol=1e-6)
    assert np.ptp(actions[:, :6], axis=0).max() > 0.1  # the arm moves, and not always alike


def played_here(env: Any, policy_config: PolicyConfig) -> tuple[bool, np.ndarray]:
    """Success and the actions of the same episode, by our own rollout."""
    (worker,) = workers = make_workers(env, chunk_size=policy_config.chunk_size)
    policy = policy_factory(policy_config)(policy_config, worker.description, seed=0)
    rollout = Rollout(RolloutConfig(), policy=policy, workers=workers, timeline=Timeline(), seed=0)
    spec = EpisodeSpec(group_id=0, sample_id=0, task_id=TASK, init_state_id=0, seed=0)
    (trajectory,) = rollout.play([spec], temperature=0.0)
    rollout.close()
    chunks = policy.codec.decode(trajectory.decisions["token_ids"])
    return trajectory.success, chunks.reshape(-1, chunks.shape[-1])[: trajectory.length]
