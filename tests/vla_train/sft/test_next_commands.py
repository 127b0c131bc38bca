"""The command that a supervised run ends with trains what was taught, where it was taught."""

import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from vla_train.command_line import parse_train
from vla_train.config import EnvConfig, PolicyConfig
from vla_train.sft.config import SftConfig
from vla_train.sft.next_commands import next_commands


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"chunk_size": 4},
        {"lora_rank": 32, "lora_layers": "language", "base_dtype": "nf4"},
        {"factory": "my_policy:make", "kwargs": {"depth": "3", "name": "two words"}},
    ],
    ids=str,
)
def test_the_command_that_goes_on_with_grpo_has_the_policy_the_env_and_the_split(changes: dict[str, Any]) -> None:
    env = EnvConfig(id="CartPole-v1", kwargs={"sutton": "true"}, instruction="balance the pole", success="return")
    config = SftConfig(
        data=Path("data"),
        output=Path("runs/my start"),
        train_fraction=0.6,
        split_seed=3,
        env=env,
        policy=replace(PolicyConfig(), **changes),
    )
    command, report = next_commands(config)
    words = shlex.split(command.partition("python -m vla_train train ")[2])
    asked = parse_train(words)
    assert asked.policy == replace(config.policy, checkpoint="runs/my start")
    for name in ("id", "kwargs", "image_key", "instruction", "success", "success_return", "max_episode_steps"):
        assert getattr(asked.env, name) == getattr(env, name), name
    assert (asked.train_fraction, asked.split_seed) == (0.6, 3)
    assert asked.output == Path("runs/my start-grpo")
    assert report.endswith("report 'runs/my start'")
