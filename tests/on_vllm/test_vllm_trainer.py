"""The trainer with vLLM, from the command line: iterations that sample, update, push weights and evaluate."""

import json
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[1] / "vla_train"))

from small_runs import command_line, run_command, save_small_checkpoint, small_config


@pytest.mark.parametrize("options", [{}, {"lora_rank": 2}], ids=["all weights", "adapters"])
@pytest.mark.parametrize("max_staleness", [0, 1])
def test_a_run_plays_with_the_weights_that_it_has_trained(tmp_path: Path, options: dict[str, object], max_staleness: int):
    config = small_config(
        save_small_checkpoint(tmp_path / "checkpoint", num_layers=2),
        tmp_path / "run",
        iterations=3,
        policy={"factory": "vllm", **options},
        optim={"minibatch_trajectories": 8},
        rollout={"min_success_rate": 0.0, "max_success_rate": 1.0, "max_staleness": max_staleness},
        eval={"every": 3},
    )
    result = run_command("train", *command_line(config), timeout_s=500)
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-4000:]
    records = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    updates = [record for record in records if "update/updates" in record]
    assert len(updates) == 3
    if max_staleness == 0:  # nothing has changed between sampling and the first pass of an update
        assert all(update["update/policy_lag"] == 0 and update["update/sampling_gap"] < 1e-4 for update in updates)
