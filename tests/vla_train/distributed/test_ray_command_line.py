"""Training and evaluations whose simulators and sampling policy are on other nodes."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ray_nodes import TESTS, RayNodes

from vla_train.config import EnvConfig, EvalConfig, EvaluateConfig, PolicyConfig, TrainConfig
from vla_train.evaluation.of_checkpoint import CheckpointEvaluation
from vla_train.loop import train

OPTIONS = """
    --iterations 2 --env.id pipeline_envs:Drift-v0 --env.success terminated --env.max-episode-steps 60
    --env.num-workers 2 --env.envs-per-worker 2
    --env.worker ray --policy.worker ray --policy.size tiny --policy.chunk-size 3 --rollout.deterministic
    --rollout.groups-per-iteration 1 --rollout.group-size 4 --rollout.max-attempts 8
    --optim.learning-rate 0.01 --eval.every 0 --checkpoint-every 2 --display plain
"""


def train_config(small_run: Callable[..., TrainConfig]) -> TrainConfig:
    return small_run(iterations=1, policy={"worker": "ray", "replicas": 2}, rollout={"groups_per_iteration": 1})


@pytest.mark.slow
def test_an_evaluation_plays_on_the_replicas_it_is_told_and_ends_them(
    small_checkpoint: Path, tmp_path: Path, ray_nodes: RayNodes
) -> None:
    config = EvaluateConfig(
        checkpoint=str(small_checkpoint),
        output=tmp_path / "results",
        display="none",
        env=EnvConfig(id="reach_env:Reach-v0", num_workers=1, envs_per_worker=2, success="terminated"),
        policy=PolicyConfig(chunk_size=2, worker="ray", replicas=2),
        eval=EvalConfig(episodes_per_task=4, videos=0),
    )
    evaluation = CheckpointEvaluation(config)
    policy: Any = evaluation._rollout._policy
    assert policy.node_ids == [ray_nodes.policy_node] * 2
    assert len(evaluation.play()[0].episodes) == 4
    assert policy._actors == []


@pytest.mark.slow
@pytest.mark.usefixtures("ray_nodes")
def test_a_run_ends_the_replicas_of_its_policy_also_where_its_set_up_fails(
    small_run: Callable[..., TrainConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    from vla_train.distributed.ray_policy import RayPolicy

    closed: list[RayPolicy] = []
    close = RayPolicy.close
    monkeypatch.setattr(RayPolicy, "close", lambda policy: (closed.append(policy), close(policy)))
    train(train_config(small_run))
    assert len(closed) == 1
    (small_run().output / "checkpoints" / "step_000001" / "rollout.npz").write_bytes(b"cut short")
    with pytest.raises(ValueError, match="damaged"):
        train(train_config(small_run))
    assert len(closed) == 2


@pytest.mark.slow
def test_simulators_and_sampling_policy_on_nodes_of_their_own_train(tmp_path: Path, ray_nodes: RayNodes) -> None:
    path = os.pathsep.join([str(TESTS), os.environ.get("PYTHONPATH", "")])
    result = subprocess.run(
        [sys.executable, "-m", "vla_train", "train", "--output", str(tmp_path), *OPTIONS.split()],
        env={**os.environ, "PYTHONPATH": path, "RAY_ADDRESS": ray_nodes.address},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr
    iterations = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert len(iterations) == 2
    assert iterations[0]["update/grad_norm"] > 0, "nothing was learnt, so pushing weights cannot be seen"
    for metrics in iterations:
        assert metrics["update/policy_lag"] == 0
        assert metrics["update/sampling_gap"] < 1e-4, "the sampling policy has other weights than the trainer"
