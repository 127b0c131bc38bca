"""The trainer on Isaac Lab: an iteration of a policy of 0.1 million weights, from the command line, env workers included."""

import sys
from pathlib import Path

import pytest
from converted import FOLDER, TASKS

sys.path.append(str(Path(__file__).parents[1] / "vla_train"))

from small_runs import command_line, run_command, save_small_checkpoint, small_config


@pytest.mark.parametrize("worker", ["process", "thread"])
def test_an_iteration_plays_and_updates(tmp_path: Path, worker: str):
    suite, task_id = TASKS[0]
    kwargs = {
        "backend": "isaaclab",
        "suite": suite,
        "task_id": str(task_id),
        "scene_dir": str(FOLDER),
        "image_size": "32",
        "max_episode_steps": "4",
        "device": "cpu",
    }
    config = small_config(
        save_small_checkpoint(tmp_path / "checkpoint", action_dim=7),
        tmp_path / "run",
        iterations=1,
        env={
            "id": "vla_envs:Isaac-v0",
            "kwargs": kwargs,
            "num_workers": 1,
            "envs_per_worker": 4,
            "worker": worker,
            "success": "auto",
        },
        policy={"statistics_key": "actions"},
        rollout={"min_success_rate": 0.0, "max_success_rate": 1.0},
    )
    result = run_command("train", *command_line(config), timeout_s=500)
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-2000:]
    assert list((tmp_path / "run").glob("**/*.safetensors"))
