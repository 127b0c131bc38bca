"""Whole runs that take a second or two: a checkpoint of 0.1 million weights on the envs of `reach_env`."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import load_file

from vla_train.config import EnvConfig, EvalConfig, OptimConfig, PolicyConfig, RolloutConfig, TrainConfig
from vla_train.config_json import config_to_json
from vla_train.policy.simplevla_oft import SimpleVLAOFT, named_config
from vla_train.policy.simplevla_oft.action_tokens import ActionStatistics
from vla_train.policy.simplevla_oft.prompts import TOKENIZER_FILE
from vla_train.policy.simplevla_oft.small_tokenizer import PROMPT_END_ID, small_tokenizer

CHUNK_SIZE, ACTION_DIM = 2, 2


def save_small_checkpoint(
    folder: Path, *, action_dim: int = ACTION_DIM, bound: float = 1.0, seed: int = 0, num_layers: int = 1, width: int = 32
) -> Path:
    """A checkpoint in the published layout with random weights, for actions in [-bound, bound].

    With one layer all tokens of a chunk are drawn alike: placeholders hold zeros, so it takes a second one to tell them apart.
    """
    tokenizer = small_tokenizer()
    tiny = named_config(
        "tiny",
        num_text_tokens=tokenizer.get_vocab_size(),
        prompt_end_token_id=PROMPT_END_ID,
        chunk_size=CHUNK_SIZE,
        action_dim=action_dim,
    )
    high = np.full(action_dim, bound)
    config = replace(
        tiny,
        towers=tuple(replace(tower, width=16, depth=2, num_heads=1, mlp_width=16) for tower in tiny.towers),
        image_size=28,
        language=replace(tiny.language, hidden_size=width, intermediate_size=width, num_layers=num_layers, num_heads=1),
        gripper=None,
        norm_stats={"actions": ActionStatistics.from_bounds(-high, high).to_json()},
    )
    model = SimpleVLAOFT.from_random(config, seed=seed, dtype=torch.float32, device=torch.device("cpu"))
    model.companion_files[TOKENIZER_FILE] = tokenizer.to_str().encode()
    model.save_pretrained(str(folder))
    return folder


def small_config(checkpoint: Path, output: Path, **changes: Any) -> TrainConfig:
    """Four iterations of two groups of four episodes; `changes` by field of `TrainConfig`, sections as fields to change."""
    sections: dict[str, Any] = {
        "env": EnvConfig(id="reach_env:Reach-v0", num_workers=2, envs_per_worker=2, success="terminated"),
        "policy": PolicyConfig(checkpoint=str(checkpoint), chunk_size=CHUNK_SIZE, device="cpu", dtype="float32"),
        "rollout": RolloutConfig(groups_per_iteration=2, group_size=4, max_attempts=1.0, deterministic=True),
        "optim": OptimConfig(learning_rate=1e-3, minibatch_trajectories=4, microbatch_rows=8),
        "eval": EvalConfig(every=0, before_training=False, episodes_per_task=4, videos=1),
    }
    for name, section in sections.items():
        sections[name] = replace(section, **changes.pop(name, {}))
    defaults = {"output": output, "iterations": 4, "checkpoint_every": 1, "display": "none"}
    return TrainConfig(**{**defaults, **sections, **changes})


def saved_state(run: Path, done: int) -> dict[str, np.ndarray]:
    """Weights and AdamW's moments in a run's checkpoint, the parts of all ranks put together."""
    files = sorted((run / "checkpoints" / f"step_{done:06d}").glob("trainer-*.safetensors"))
    parts: dict[str, list[np.ndarray]] = {}
    for file in files:
        for name, part in load_file(file).items():
            parts.setdefault(name, []).append(part)
    return {name: np.concatenate(rows) if len(rows) > 1 else rows[0] for name, rows in parts.items()}


def command_line(config: TrainConfig) -> list[str]:
    """The options that make `config` out of the default recipe."""
    options: list[str] = []
    for name, value in config_to_json(config).items():
        fields = {f"{name}.{key}": item for key, item in value.items()} if isinstance(value, dict) else {name: value}
        for key, item in fields.items():
            section, _, last = key.replace("_", "-").rpartition(".")
            option = f"--{section}.{last}" if section else f"--{last}"
            match item:
                case bool():
                    options.append(option if item else option.removesuffix(last) + f"no-{last}")
                case dict():
                    options += [option, *(f"{k}={v}" for k, v in item.items())]
                case list():
                    options += [option, *map(str, item)]
                case _:
                    options += [option, str(item)]
    return options


def run_command(*arguments: str, timeout_s: float = 120) -> subprocess.CompletedProcess[str]:
    """`python -m vla_train ...` in a process of its own, with the envs of these tests at hand."""
    paths = [str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    return subprocess.run(
        [sys.executable, "-m", "vla_train", *arguments],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=timeout_s,
    )
