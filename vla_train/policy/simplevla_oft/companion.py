"""What a checkpoint lacks, from another one of the same model: `policy.companion`.

Trainers save less than they loaded. SimpleVLA-RL leaves out statistics and image settings, with LoRA also the tokenizer; some
published folders lack Python files of the published code. The checkpoint that they were trained from has all of it.

Invariant: what a checkpoint has itself is kept (but for the rest of a tokenizer without its main file), and the files of a
tokenizer come from one place.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from fnmatch import fnmatch

from vla_train.policy.simplevla_oft.config import SimpleVLAOFTConfig

_TOKENIZER = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
"""Belong together; a tokenizer without the first cannot be used here."""
_ONE_BY_ONE = ("preprocessor_config.json", "processor_config.json", "generation_config.json", "*.py")
_NOT_OF_THE_MODEL = ("norm_stats", "unnorm_key", "published", "gripper", "jpeg", "images")
"""Fields of the config that say how a checkpoint is played, not what it computes."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Companion:
    """What a checkpoint can supply, weights aside."""

    name: str
    config: SimpleVLAOFTConfig
    """With its action statistics."""
    files: Mapping[str, bytes]
    """Those that travel along, by name."""


def supplied_files(own: Mapping[str, bytes], companion: Companion) -> dict[str, bytes]:
    """Files of the companion that a checkpoint with these files lacks."""
    tokenizer = () if _TOKENIZER[0] in own else _TOKENIZER
    supplied = {name: content for name, content in companion.files.items() if name in tokenizer}
    for name, content in companion.files.items():
        if name not in own and any(fnmatch(name, pattern) for pattern in _ONE_BY_ONE):
            supplied[name] = content
    return supplied


def with_statistics_of(config: SimpleVLAOFTConfig, companion: Companion) -> SimpleVLAOFTConfig:
    """The config with those statistics of the companion that it lacks, and the companion's choice where it has none."""
    return replace(
        config,
        norm_stats={**companion.config.norm_stats, **config.norm_stats},
        unnorm_key=config.unnorm_key or companion.config.unnorm_key,
    )


def require_same_model(config: SimpleVLAOFTConfig, companion: Companion, *, name: str) -> None:
    """Refuse a companion of another model: its tokenizer and statistics would fit no weight.

    Raises:
        ValueError: The message names both, and what differs.
    """
    for field in fields(config):
        ours, theirs = getattr(config, field.name), getattr(companion.config, field.name)
        if field.name not in _NOT_OF_THE_MODEL and ours != theirs:
            raise ValueError(
                f"policy.companion {companion.name} is of another model than {name}: {field.name} is {theirs}, not {ours}"
            )
