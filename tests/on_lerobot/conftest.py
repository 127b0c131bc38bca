"""Tests beside LeRobot: `make test-lerobot` runs them, in an environment of their own. Elsewhere there are none."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"
if find_spec("lerobot") is None:
    collect_ignore_glob = ["test_*.py"]

TASK = ("libero_spatial", 0)
SIDE = 84


@pytest.fixture(scope="session")
def collected(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two demonstrations of a pick and place, as `collect` writes them, with both cameras."""
    from vla_train.cli import main

    folder = tmp_path_factory.mktemp("collected") / "demonstrations"
    suite, task_id = TASK
    task = ["--suite", suite, "--task-ids", str(task_id), "--episodes-per-task", "2"]
    main(["collect", *task, "--image-size", str(SIDE), "--detail", "fast", "--wrist-camera", "--output", str(folder)])
    return folder


@pytest.fixture(scope="session")
def act_options() -> dict[str, object]:
    """Of the smallest ACT that LeRobot can make without a network."""
    return {
        "pretrained_backbone_weights": None,
        "dim_model": 32,
        "n_heads": 2,
        "dim_feedforward": 32,
        "n_encoder_layers": 1,
        "n_vae_encoder_layers": 1,
        "latent_dim": 4,
        "chunk_size": 4,
        "n_action_steps": 4,
        "device": "cpu",
        "push_to_hub": False,
    }


@pytest.fixture(scope="session")
def act_checkpoint(act_options: dict[str, object], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An ACT with random weights, as LeRobot saves it, that reads what LeRobot's LIBERO sets hold."""
    from lerobot.configs import FeatureType, PolicyFeature
    from lerobot.policies import make_pre_post_processors
    from lerobot.policies.act.configuration_act import ACTConfig
    from lerobot.policies.act.modeling_act import ACTPolicy

    picture = PolicyFeature(FeatureType.VISUAL, (3, SIDE, SIDE))
    inputs = {"observation.state": PolicyFeature(FeatureType.STATE, (8,))}
    inputs |= {f"observation.images.{name}": picture for name in ("image", "image2")}
    config = ACTConfig(
        input_features=inputs, output_features={"action": PolicyFeature(FeatureType.ACTION, (7,))}, **act_options
    )
    folder = tmp_path_factory.mktemp("act")
    for part in (ACTPolicy(config), *make_pre_post_processors(config)):
        part.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def lerobot_command() -> Callable[..., str]:
    """Runs one of LeRobot's commands with our env; returns what it printed."""

    def run(command: str, **options: object) -> str:
        suite, _ = TASK
        given = {"env.discover_packages_path": "vla_envs.lerobot", "env.type": "vla_libero", "env.task": suite}
        given |= {"env.observation_height": SIDE, "env.observation_width": SIDE, "env.detail": "fast"}
        given |= {name.replace("__", "."): value for name, value in options.items()}
        arguments = [f"--{name}={_written(value)}" for name, value in given.items()]
        program = Path(sys.executable).with_name(command)
        finished = subprocess.run([str(program), *arguments], capture_output=True, text=True, timeout=300)
        printed = finished.stdout + finished.stderr
        assert finished.returncode == 0, printed[-3000:]
        return printed

    return run


def _written(value: object) -> str:
    """As LeRobot's parser reads it."""
    return json.dumps(value) if value is None or isinstance(value, bool | list | dict) else str(value)
