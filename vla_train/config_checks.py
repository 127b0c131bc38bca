"""Checks that configs share: a value that cannot work is refused in one line that names its option."""

import math
from dataclasses import fields
from typing import Any, Literal, get_args, get_origin


def require(condition: bool, message: str) -> None:
    """Refuse with `ValueError` unless the condition holds."""
    if not condition:
        raise ValueError(message)


def check_fields(config: Any, section: str = "") -> None:
    """Refuse a choice that a field does not have, and numbers that are not finite: they pass many comparisons."""
    for f in fields(config):
        name, value = f"{section}{f.name}", getattr(config, f.name)
        if get_origin(f.type) is Literal:
            choices = get_args(f.type)
            require(value in choices, f"{name} must be one of {', '.join(choices)}, got {value!r}")
        require(not isinstance(value, float) or math.isfinite(value), f"{name} must be finite, got {value}")


def check_at_least(config: Any, section: str, minimum: int, *names: str) -> None:
    """Refuse fields that are smaller."""
    for name in names:
        value = getattr(config, name)
        require(value >= minimum, f"{section}{name} must be at least {minimum}, got {value}")


def check_positive(config: Any, section: str, *names: str) -> None:
    """Refuse fields that are not above 0."""
    for name in names:
        value = getattr(config, name)
        require(value > 0, f"{section}{name} must be positive, got {value}")
