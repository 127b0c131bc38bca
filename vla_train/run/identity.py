"""What makes a run the one it is: a resumed run may change how fast, how long or how it learns, but not what it plays."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from vla_train.config import DEMO_CHECKPOINT
from vla_train.config_file import RunConfig, is_sft
from vla_train.config_json import config_to_json
from vla_train.run.named_checkpoint import checkpoint_of_run, resolve_checkpoint
from vla_train.trainer.checkpoint_folder import list_checkpoints

_Run = TypeVar("_Run", bound=RunConfig)

_FIXED = {
    "": (
        "seed",
        "train_fraction",
        "split_seed",
        "data",
        "batch_rows",
        "stride",
        "validation_fraction",
        "padding",
        "statistics",
        "label_step",
        "gripper",
        "orientation",
    ),
    "env": ("id", "kwargs", "image_key", "instruction", "success", "success_return", "max_episode_steps"),
    "policy": (
        "factory",
        "kwargs",
        "checkpoint",
        "companion",
        "adapters",
        "size",
        "chunk_size",
        "statistics_key",
        "gripper",
        "images",
        "jpeg",
        "lora_rank",
        "lora_layers",
        "base_dtype",
    ),
    "rollout": ("group_size", "temperature"),
}
"""What a resumed run cannot change, by section of the config, where it has it: what was done before would not be its own."""
_PLACES = ("data", "checkpoint", "companion")
"""Those of them that may name a local folder: another spelling of it is no difference."""


def start_of(config: _Run) -> _Run:
    """The config with a run's folder in `policy.checkpoint` replaced by its newest checkpoint; a resumed run keeps its own.

    A run that was lost before its first checkpoint has nothing to resume, and starts from the newest as well.

    Raises:
        ValueError: There is no such checkpoint.
    """
    asked = config.policy.checkpoint
    if asked is None:
        return config
    held = _held_checkpoint(config.output) if list_checkpoints(config.output) else None
    ours = Path(asked).resolve() / "checkpoints"
    name = held if held is not None and Path(held).resolve().is_relative_to(ours) else resolve_checkpoint(asked)
    return replace(config, policy=replace(config.policy, checkpoint=name))


def absolute_place(name: str | None) -> str | None:
    """A local file or folder by its absolute name, however it was spelt; anything else, such as a hub id, as it is."""
    return str(Path(name).resolve()) if name and name != DEMO_CHECKPOINT and Path(name).exists() else name


def _held_checkpoint(output: Path) -> str | None:
    """The checkpoint that the run in this folder started from, where it says so."""
    try:
        return json.loads((output / "config.json").read_text())["policy"]["checkpoint"]
    except (OSError, ValueError, KeyError, TypeError):
        return None  # `require_same_run` says what is wrong


def split_warning(config: RunConfig) -> str | None:
    """What to know where the run that this one starts from trained on states that are held out here; None where it did not.

    `config.policy.checkpoint` is as `start_of` gives it.
    """
    step = None if config.policy.checkpoint is None else checkpoint_of_run(config.policy.checkpoint)
    if step is None:
        return None
    try:
        held = json.loads((step.parent.parent / "config.json").read_text())
        fraction, seed = held["train_fraction"], held["split_seed"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    if seed == config.split_seed and fraction <= config.train_fraction:
        return None
    return (
        f"the run in {step.parent.parent} trained on initial states that are held out here: to measure what was never seen, "
        f"set train_fraction {fraction} and split_seed {seed}"
    )


def holds_same_start(config: RunConfig) -> bool:
    """Whether `config.output` holds a run, begun from the same weights and on the same episodes."""
    try:
        return _first_difference(json.loads((config.output / "config.json").read_text()), config) is None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def require_same_run(config: RunConfig) -> None:
    """Refuse to go on with a run whose episodes would not be those of the run that `config.output` holds.

    Raises:
        ValueError: The run may not be resumed, or differs in a way that no resumed run can.
    """
    output = config.output
    if not config.resume:
        raise ValueError(f"{output} holds a run already: choose another output, or delete it")
    file = output / "config.json"
    if not file.exists():
        return
    try:
        held = json.loads(file.read_text())
        if not isinstance(held, dict) or not all(isinstance(held.get(section), dict) for section in filter(None, _FIXED)):
            raise ValueError("a section is missing")
    except ValueError as error:
        raise ValueError(f"{file} is damaged ({error}): restore or delete it") from error
    if is_sft(held) != is_sft(config_to_json(config)):
        raise ValueError(f"{output} holds a run of {'sft' if is_sft(held) else 'train'}: choose another output")
    different = _first_difference(held, config)
    if different is not None:
        option, before, now = different
        raise ValueError(
            f"{output} holds a run with {option} {before!r}, not {now!r}: choose another output "
            "(policy.checkpoint may start it from this run's weights)"
        )


def _first_difference(held: dict[str, Any], config: RunConfig) -> tuple[str, Any, Any] | None:
    """The first option that a resumed run cannot change and that differs: its name, what was held and what is asked for."""
    asked = config_to_json(config)
    for section, names in _FIXED.items():
        before, now = (data[section] if section else data for data in (held, asked))
        for name in filter(now.__contains__, names):
            was, asked_for = before.get(name, now[name]), now[name]
            if name in _PLACES:
                was, asked_for = absolute_place(was), absolute_place(asked_for)
            if was != asked_for:
                return f"{section}.{name}" if section else name, before[name], now[name]
    return None
