"""Policies as Ray actors on another node: shared batches, weights by version, replicas that fail."""

import functools
import itertools
import os
import signal
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pipeline_envs import DrawingPolicy, assert_played_as_alone, drift_config, make_spec
from ray_nodes import RayNodes

from vla_train.config import RolloutConfig
from vla_train.envs.worker import WorkerError
from vla_train.envs.workers import make_workers
from vla_train.pipeline.rollout import Rollout
from vla_train.pipeline.timeline import Timeline
from vla_train.types import EpisodeSpec, Group, Observation, PolicyOutput

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("ray_nodes")]


class WeighedPolicy(DrawingPolicy):
    """Adds its weight to every action, and fails once where it is told to.

    Args:
        fault: "raise", "die" or "hang" at the first call in which there is no file `marker`.
        marker: Made when it happens; None fails every time.
    """

    weight = 0.0
    played_with = {"images": "as drawn"}  # noqa: RUF012

    def __init__(self, *, fault: str = "", marker: Path | None = None) -> None:
        super().__init__()
        self.fault, self.marker = fault, marker

    def act(self, observation: Observation, *, uniforms: np.ndarray | None, temperature: float) -> PolicyOutput:
        if self.fault and (self.marker is None or not self.marker.exists()):
            if self.marker is not None:
                self.marker.touch()
            match self.fault:
                case "raise":
                    raise FloatingPointError("the policy broke")
                case "die":
                    os.kill(os.getpid(), signal.SIGKILL)
                case "hang":
                    time.sleep(3600)
        output = super().act(observation, uniforms=uniforms, temperature=temperature)
        output.actions[:] += self.weight
        return output

    def load_weights(self, weights: Mapping[str, torch.Tensor], *, version: int) -> None:
        self.weight, self.version = float(weights["weight"].mean()), version


def observation(rows: int) -> tuple[Observation, np.ndarray]:
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (rows, 4, 5, 3), np.uint8)
    uniforms = random.random((rows, DrawingPolicy.chunk_size * DrawingPolicy.action_dim), np.float32)
    return Observation(arrays={"image": images}, instructions=("go",) * rows), uniforms


def make_policy(*, replicas: int = 1, timeout_s: float = 60.0, max_restarts: int = 1, **arguments: Any) -> Any:
    from vla_train.distributed.ray_policy import RayPolicy

    factory = functools.partial(WeighedPolicy, **arguments)
    return RayPolicy(factory, replicas=replicas, timeout_s=timeout_s, max_restarts=max_restarts)


def test_replicas_decide_what_one_policy_would(ray_nodes: RayNodes) -> None:
    policy, local = make_policy(replicas=2), WeighedPolicy()
    try:
        assert policy.node_ids == [ray_nodes.policy_node] * 2
        assert policy.played_with == local.played_with
        for version, rows in enumerate((1, 2, 7), start=1):
            weights = {"weight": torch.full((1000,), version / 16, dtype=torch.bfloat16)}
            local.load_weights(weights, version=version)
            policy.load_weights(weights, version=version)
            seen, uniforms = observation(rows)
            got = policy.act(seen, uniforms=uniforms, temperature=1.0)
            want = local.act(seen, uniforms=uniforms, temperature=1.0)
            assert got.policy_version == policy.version == version
            np.testing.assert_array_equal(got.actions, want.actions)
            for name in ("token_ids", "logprobs"):
                np.testing.assert_array_equal(got.decision[name], want.decision[name])
    finally:
        policy.close()


def prompts() -> Iterator[tuple[EpisodeSpec, ...]]:
    return (tuple(make_spec(group, sample) for sample in range(4)) for group in itertools.count())


def mixed(group: Group) -> bool:
    return 0 < group.success_rate < 1


@pytest.mark.parametrize("fault", ["", "die", "hang"])
def test_workers_and_policy_on_nodes_of_their_own_play_the_same_episodes(fault: str, tmp_path: Path) -> None:
    policy = make_policy(fault=fault, marker=tmp_path / "failed", timeout_s=2.0 if fault == "hang" else 60.0)
    policy.load_weights({"weight": torch.zeros(3)}, version=5)
    env = drift_config(worker="ray" if not fault else "thread")
    config = RolloutConfig(groups_per_iteration=2, group_size=4, max_attempts=5.0, deterministic=True)
    workers = make_workers(env, chunk_size=DrawingPolicy.chunk_size)
    rollout = Rollout(config, policy=policy, workers=workers, timeline=Timeline(), seed=11)
    try:
        groups = rollout.collect(prompts(), mixed).groups
    finally:
        rollout.close()
        policy.close()
    assert (tmp_path / "failed").exists() == bool(fault)
    assert [group.group_id for group in groups] == [4, 6]
    for trajectory in (trajectory for group in groups for trajectory in group.trajectories):
        assert_played_as_alone(trajectory, seed=11)
        assert (trajectory.policy_versions == 5).all(), "a new replica has other weights"


@pytest.mark.parametrize(
    ("fault", "error", "cause"),
    [
        ("die", WorkerError, "policy replica 0 failed after 1 restarts: its actor died"),
        ("hang", WorkerError, "policy replica 0 failed after 1 restarts: no answer for 1 s"),
        ("raise", FloatingPointError, "the policy broke"),
    ],
)
def test_a_replica_that_keeps_failing_is_an_error_with_its_cause(fault: str, error: type[Exception], cause: str) -> None:
    policy = make_policy(fault=fault, timeout_s=1.0 if fault == "hang" else 60.0)
    try:
        seen, uniforms = observation(2)
        with pytest.raises(error, match=cause):
            policy.act(seen, uniforms=uniforms, temperature=1.0)
    finally:
        policy.close()


def test_a_policy_that_cannot_be_built_or_placed_is_refused_with_the_reason() -> None:
    with pytest.raises(TypeError, match="colour"):
        make_policy(colour="red")
    with pytest.raises(ValueError, match="'train_rollout'"):
        make_policy(replicas=3)
