"""A config from a file: the `config.json` of a run, or a part of one, written by hand in JSON or TOML."""

import json
import tomllib
from pathlib import Path

from vla_train.config import TrainConfig, config_from_json


def read_config(file: Path, *, defaults: TrainConfig | None = None) -> TrainConfig:
    """The config that a file holds.

    Args:
        file: JSON or TOML, whatever its name is.
        defaults: Gives the fields that the file leaves out; None takes those of `TrainConfig`.

    Raises:
        ValueError: It cannot be read, is neither JSON nor TOML, or a field is unknown or cannot work; the message names it.
    """
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no text"
        raise ValueError(f"config file {file} cannot be read: {reason}") from error
    try:
        data = json.loads(text) if text.lstrip().startswith("{") else tomllib.loads(text)
    except ValueError as error:
        raise ValueError(f"config file {file} is neither JSON nor TOML: {error}") from error
    try:
        return config_from_json(data, defaults=defaults)
    except ValueError as error:
        raise ValueError(f"config file {file}: {error}") from error
