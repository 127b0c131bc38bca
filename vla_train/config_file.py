"""A config from a file: the `config.json` of a run, or a part of one, written by hand in JSON or TOML."""

import json
import tomllib
from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, TypeVar

from vla_train.config import TrainConfig
from vla_train.config_json import config_from_json
from vla_train.sft.config import SftConfig

_Config = TypeVar("_Config")
RunConfig = TrainConfig | SftConfig
"""Of a run's folder."""
_SHARED = ("seed", "train_fraction", "split_seed", "env", "policy", "rollout", "eval")
"""What both kinds of runs have, and evaluations go by."""


def is_sft(data: Mapping[str, Any]) -> bool:
    """Whether a run's `config.json` is that of supervised training."""
    return "data" in data


def run_config(data: Mapping[str, Any]) -> RunConfig:
    """The config that the `config.json` of a run holds.

    Raises:
        ValueError: A field is unknown or cannot work; the message names it.
    """
    return config_from_json(data, defaults=SftConfig(data=Path()) if is_sft(data) else TrainConfig())


def read_run_config(file: Path, *, defaults: RunConfig | None = None) -> RunConfig:
    """The config that a file holds, of a run of either kind.

    Args:
        file: As for `read_config`; errors too.
        defaults: Give the fields that it leaves out, whichever kind they are of.
    """
    data = _read(file)
    own: RunConfig = SftConfig(data=Path()) if is_sft(data) else TrainConfig()
    is_part = isinstance(defaults, SftConfig) and data.keys() <= {field.name for field in fields(SftConfig)}
    if defaults is not None and (is_part or type(defaults) is type(own)):
        own = defaults  # a part of a config of sft need not name its data
    elif defaults is not None:
        own = replace(own, **{name: getattr(defaults, name) for name in _SHARED})
    return read_config(file, defaults=own)


def read_config(file: Path, *, defaults: _Config) -> _Config:
    """The config that a file holds.

    Args:
        file: JSON or TOML, whatever its name is.
        defaults: Of the config's class; gives the fields that the file leaves out.

    Raises:
        ValueError: It cannot be read, is neither JSON nor TOML, or a field is unknown or cannot work; the message names it.
    """
    data = _read(file)
    try:
        return config_from_json(data, defaults=defaults)
    except ValueError as error:
        raise ValueError(f"config file {file}: {error}") from error


def _read(file: Path) -> dict[str, Any]:
    try:
        text = file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no text"
        raise ValueError(f"config file {file} cannot be read: {reason}") from error
    try:
        return json.loads(text) if text.lstrip().startswith("{") else tomllib.loads(text)
    except ValueError as error:
        raise ValueError(f"config file {file} is neither JSON nor TOML: {error}") from error
