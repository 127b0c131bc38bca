"""Configs as plain JSON data and back: what `config.json` of a run and config files hold.

Knows no file; importing this needs neither torch nor a simulator.
"""

import json
from collections.abc import Mapping
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

from vla_train.config import DEMO_CHECKPOINT, TrainConfig
from vla_train.config_checks import require

_Config = TypeVar("_Config")

RENAMED = {"env.num_groups": "env.num_workers", "env.envs_per_group": "env.envs_per_worker"}
"""Fields that had another name in earlier versions."""


def config_to_json(config: Any) -> dict[str, Any]:
    """A config (any of these classes) as plain JSON data, but for what nobody can set; `config_from_json` gives it back."""

    def plain(value: Any) -> Any:
        if is_dataclass(value):
            return {f.name: plain(getattr(value, f.name)) for f in fields(value) if f.init}
        if isinstance(value, dict):
            return {key: plain(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [plain(item) for item in value]
        return str(value) if isinstance(value, Path) else value

    data: dict[str, Any] = plain(config)
    return data


def config_from_json(data: Mapping[str, Any], *, defaults: _Config) -> _Config:
    """The config that JSON data of `config_to_json`, or a part of it, stands for.

    Args:
        data: Fields by name; a section is a mapping of its own.
        defaults: Of the config's class; gives the fields that `data` leaves out.

    Raises:
        ValueError: A section or field is unknown or has another name by now, or a value cannot work; the message names it.
    """
    env = data.get("env") if isinstance(data, Mapping) else None
    if isinstance(defaults, TrainConfig) and isinstance(env, Mapping) and env.get("id", defaults.env.id) != defaults.env.id:
        return _updated(for_another_env(defaults), data, section="")  # type: ignore[return-value]
    return _updated(defaults, data, section="")


def for_another_env(config: TrainConfig) -> TrainConfig:
    """The config without what is meant for its own env alone: that env's arguments, and the demo, which plays LIBERO."""
    return replace(without_demo(config), env=replace(config.env, kwargs={}))


def without_demo(config: TrainConfig) -> TrainConfig:
    """The config with random weights where it starts from the demo."""
    if config.policy.checkpoint != DEMO_CHECKPOINT:
        return config
    return replace(config, policy=replace(config.policy, checkpoint=None))


def _updated(config: _Config, data: Any, *, section: str) -> _Config:
    """`config` with the fields that `data` holds."""
    require(isinstance(data, Mapping), f"{section.rstrip('.') or 'a config'} must be a table of fields, got {data!r}")
    known = {f.name: f for f in fields(config) if f.init}  # type: ignore[arg-type]
    changes: dict[str, Any] = {}
    for name, value in data.items():
        full_name = f"{section}{name}"
        require(full_name not in RENAMED, f"{full_name} is now called {RENAMED.get(full_name)}: rename it")
        require(
            name in known,
            f"unknown field {full_name} (of another version, or mistyped): {section.rstrip('.') or 'a config'} has "
            + ", ".join(known),
        )
        before = getattr(config, name)
        if is_dataclass(before):
            changes[name] = _updated(before, value, section=f"{full_name}.")
        else:
            changes[name] = _read(full_name, known[name].type, value)
    return replace(config, **changes)  # type: ignore[type-var]


def _read(name: str, kind: Any, value: Any) -> Any:
    """The value of a field, from JSON or TOML."""
    if get_origin(kind) in (UnionType, Union):
        if value is None or any(value in get_args(member) for member in get_args(kind) if get_origin(member) is Literal):
            return value
        kind = get_args(kind)[0]
    if get_origin(kind) is Annotated:
        require(isinstance(value, Mapping), f"{name} must be a table of arguments, got {value!r}")
        return {key: _argument_text(f"{name}.{key}", argument) for key, argument in value.items()}
    if get_origin(kind) is tuple:
        wanted = "a list of numbers" if get_args(kind)[0] in (int, float) else "a list of names"
        require(isinstance(value, list), f"{name} must be {wanted}, got {value!r}")
        return tuple(_read(f"each of {name}", get_args(kind)[0], item) for item in value)
    if kind in (int, float):
        wanted = "a whole number" if kind is int else "a number"
        fits = isinstance(value, int if kind is int else int | float) and not isinstance(value, bool)
    else:
        wanted, fits = ("true or false", isinstance(value, bool)) if kind is bool else ("a text", isinstance(value, str))
    require(fits, f"{name} must be {wanted}, got {value!r}")
    return value if get_origin(kind) is Literal else kind(value)


def _argument_text(name: str, value: Any) -> str:
    """An argument as the command line would have it: JSON, or a text as it is."""
    try:
        return value if isinstance(value, str) else json.dumps(value)
    except TypeError:
        raise ValueError(
            f"{name} must be a text, a number, true or false, or a list or table of these, got {value!r}"
        ) from None
