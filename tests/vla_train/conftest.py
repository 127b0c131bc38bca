"""A checkpoint small enough that a whole run takes seconds, and runs that use it."""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the command line does, before PyTorch is imported

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from vla_train.config import EnvConfig, EvalConfig, OptimConfig, PolicyConfig, RolloutConfig, TrainConfig
from vla_train.policy.action_tokens import ActionStatistics
from vla_train.policy.simplevla_oft import SimpleVLAOFT, named_config
from vla_train.policy.simplevla_oft.prompts import TOKENIZER_FILE
from vla_train.policy.simplevla_oft.small_tokenizer import PROMPT_END_ID, small_tokenizer

SMALL_CHUNK = 2
ACTION_DIM = 2


def save_small_checkpoint(folder: Path, *, seed: int = 0) -> Path:
    """A checkpoint in the published layout with random weights, for actions of two numbers in [-1, 1]."""
    tokenizer = small_tokenizer()
    tiny = named_config(
        "tiny",
        num_text_tokens=tokenizer.get_vocab_size(),
        prompt_end_token_id=PROMPT_END_ID,
        chunk_size=SMALL_CHUNK,
        action_dim=ACTION_DIM,
    )
    bounds = torch.ones(ACTION_DIM).numpy()
    config = replace(
        tiny,
        towers=tuple(replace(tower, width=16, depth=2, num_heads=1, mlp_width=16) for tower in tiny.towers),
        image_size=28,
        language=replace(tiny.language, hidden_size=32, intermediate_size=32, num_layers=1, num_heads=1),
        gripper=None,
        norm_stats={"actions": ActionStatistics.from_bounds(-bounds, bounds).to_json()},
    )
    model = SimpleVLAOFT.from_random(config, seed=seed, dtype=torch.float32, device=torch.device("cpu"))
    model.companion_files[TOKENIZER_FILE] = tokenizer.to_str().encode()
    model.save_pretrained(str(folder))
    return folder


@pytest.fixture(scope="session")
def small_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_small_checkpoint(tmp_path_factory.mktemp("small") / "checkpoint")


@pytest.fixture
def small_run(small_checkpoint: Path, tmp_path: Path) -> Callable[..., TrainConfig]:
    """Configs of runs on `reach_env` that take a second or two; by section, or by field of `TrainConfig`."""

    def make(**changes) -> TrainConfig:
        sections = {
            "env": EnvConfig(id="reach_env:Reach-v0", num_groups=2, envs_per_group=2),
            "policy": PolicyConfig(checkpoint=str(small_checkpoint), chunk_size=SMALL_CHUNK, device="cpu"),
            "rollout": RolloutConfig(groups_per_iteration=2, group_size=4, max_attempts=1.0, deterministic=True),
            "optim": OptimConfig(learning_rate=1e-3, minibatch_trajectories=4, microbatch_rows=8),
            "eval": EvalConfig(every=0, episodes_per_task=4, videos=1),
        }
        for name, section in sections.items():
            changes[name] = replace(section, **changes.get(name, {}))
        defaults = {"output": tmp_path / "run", "iterations": 4, "checkpoint_every": 1, "display": "none"}
        return TrainConfig(**{**defaults, **changes})

    return make


@pytest.fixture
def run_command() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs `python -m vla_train ...` in a process of its own, with the envs of these tests at hand."""

    def run(*arguments: str, timeout_s: float = 120) -> subprocess.CompletedProcess[str]:
        paths = [str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])]
        return subprocess.run(
            [sys.executable, "-m", "vla_train", *arguments],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), "CUDA_VISIBLE_DEVICES": ""},
            capture_output=True,
            text=True,
            timeout=timeout_s,
        )

    return run
