"""A training run from the command line whose simulators and sampling policy are on other nodes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from ray_nodes import TESTS, RayNodes

OPTIONS = """
    --iterations 2 --env.id pipeline_envs:Drift-v0 --env.max-episode-steps 60 --env.num-workers 2 --env.envs-per-worker 2
    --env.worker ray --policy.worker ray --policy.size tiny --policy.chunk-size 3 --rollout.deterministic
    --rollout.groups-per-iteration 1 --rollout.group-size 4 --rollout.max-attempts 8
    --optim.learning-rate 0.01 --eval.every 0 --checkpoint-every 2 --display plain
"""


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
