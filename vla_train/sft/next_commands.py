"""What to do with a policy that was taught: the commands, complete enough to be pasted."""

import shlex
from collections.abc import Iterator
from typing import Any

from vla_train.config import EnvConfig, PolicyConfig
from vla_train.sft.config import SftConfig

_OF_ENV = ("id", "kwargs", "image_key", "instruction", "success", "success_return", "max_episode_steps")
"""Fields of the env that GRPO must share; others say how fast it is played."""
_OF_POLICY = ("factory", "kwargs", "chunk_size", "lora_rank", "lora_layers", "base_dtype")
"""Fields of the policy that its checkpoint does not settle."""


def next_commands(config: SftConfig) -> list[str]:
    """GRPO from the policy's newest checkpoint, on the same env and the same split of its initial states, and the report."""
    output = shlex.quote(str(config.output))
    options = [f"--policy.checkpoint {output}", f"--output {shlex.quote(f'{config.output}-grpo')}"]
    options += [f"--train-fraction {config.train_fraction!r}", f"--split-seed {config.split_seed}"]
    options += _options("policy", config.policy, PolicyConfig(), _OF_POLICY)
    options += _options("env", config.env, EnvConfig(), _OF_ENV)
    return [
        f"done: {config.output}. Go on with GRPO: python -m vla_train train {' '.join(options)}",
        f"Look at it: python -m vla_train report {output}",
    ]


def _options(section: str, config: Any, defaults: Any, names: tuple[str, ...]) -> Iterator[str]:
    """Those of a section's fields that are not as by default."""
    for name in names:
        value = getattr(config, name)
        if value != getattr(defaults, name):
            words = [f"{key}={item}" for key, item in value.items()] if isinstance(value, dict) else [str(value)]
            yield f"--{section}.{name.replace('_', '-')} {shlex.join(words)}"
