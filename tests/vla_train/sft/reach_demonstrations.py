"""Demonstrations of `reach_env`: to the right, then a second number that depends on the step, which the image shows."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import reach_env
from small_runs import CHUNK_SIZE

from vla_train.config import AdamWConfig, EnvConfig, EvalConfig, PolicyConfig
from vla_train.demonstrations.layout import AS_PLAYED, Features
from vla_train.demonstrations.pictures import encode_pictures
from vla_train.demonstrations.writer import DatasetWriter, Demonstration, Origin
from vla_train.sft.config import AugmentConfig, SftConfig

UNVARIED = AugmentConfig(crop=False, shift=0.0, brightness=0.0, contrast=0.0, saturation=0.0, hue=0.0)

ACTIONS = np.array([[0.5, level] for level in (-1.0, -0.5, 0.0, 0.25, 0.5, 1.0)], np.float32)


def write_reach_demonstrations(
    folder: Path, *, num_episodes: int = 4, fps: int = 20, suite: str = "reach", robot_type: str | None = None
) -> Path:
    """Episodes of 6 steps, two of the env's decisions apart."""
    shape = (reach_env.SIZE, reach_env.SIZE, 3)
    features = Features(fps=fps, robot_type=robot_type, action_dim=2, state_dim=None, images={"image": shape})
    writer = DatasetWriter(
        folder, features=features, provenance={"conventions": {"mirrored_images": False, "actions": AS_PLAYED}}
    )
    for number in range(num_episodes):
        env = reach_env.ReachEnv()
        observation, _ = env.reset(seed=number)
        frames = []
        for action in ACTIONS:
            frames.append(observation["image"])
            observation, *_ = env.step(action)
        writer.append(
            Demonstration(
                instruction=reach_env.INSTRUCTION,
                actions=ACTIONS,
                states=None,
                pictures={"image": encode_pictures(np.stack(frames))},
                origin=Origin(suite=suite, task_id=0, init_state_id=-1, seed=number, attempt=number, success=True),
            )
        )
    writer.close()
    return folder


def sft_config(data: Path, checkpoint: Path, output: Path, **changes: Any) -> SftConfig:
    """Twelve steps of eight rows; `changes` by field of `SftConfig`, sections as fields to change."""
    sections: dict[str, Any] = {
        "env": EnvConfig(id="reach_env:Reach-v0", num_workers=1, envs_per_worker=4, success="terminated"),
        "policy": PolicyConfig(checkpoint=str(checkpoint), chunk_size=CHUNK_SIZE, device="cpu", dtype="float32"),
        "optim": AdamWConfig(learning_rate=3e-3, schedule="cosine", warmup_steps=2, microbatch_rows=8),
        "eval": EvalConfig(every=0, before_training=False, temperatures=(0.0, 1.0), episodes_per_task=4, videos=1),
    }
    for name, section in sections.items():
        sections[name] = replace(section, **changes.pop(name, {}))
    defaults = {"data": data, "output": output, "steps": 12, "batch_rows": 8, "checkpoint_every": 6, "log_every": 2}
    return SftConfig(**{"display": "none", **defaults, **sections, **changes})
