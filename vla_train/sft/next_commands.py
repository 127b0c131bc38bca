"""What to do with a policy that was taught: the commands, complete enough to be pasted."""

import shlex

from vla_train.config import EnvConfig, TrainConfig
from vla_train.sft.config import SftConfig

_OF_ENV = ("id", "kwargs", "image_key", "instruction", "success", "success_return", "max_episode_steps")
"""Fields of the env that GRPO must share; others say how fast it is played."""


def next_commands(config: SftConfig) -> list[str]:
    """GRPO from the policy's newest checkpoint, on the same env and the same split of its initial states, and the report."""
    output = shlex.quote(str(config.output))
    options = [f"--policy.checkpoint {output}", f"--output {shlex.quote(f'{config.output}-grpo')}"]
    options += [f"--train-fraction {config.train_fraction:g}", f"--split-seed {config.split_seed}"]
    if config.policy.chunk_size != TrainConfig().policy.chunk_size:
        options.append(f"--policy.chunk-size {config.policy.chunk_size}")
    for name in _OF_ENV:
        value = getattr(config.env, name)
        if value == getattr(EnvConfig(), name):
            continue
        words = [f"{key}={item}" for key, item in value.items()] if isinstance(value, dict) else [str(value)]
        options.append(f"--env.{name.replace('_', '-')} {shlex.join(words)}")
    return [
        f"done: {config.output}. Go on with GRPO: python -m vla_train train {' '.join(options)}",
        f"Look at it: python -m vla_train report {output}",
    ]
