"""How an env was made, as Gymnasium keeps it in `env.spec`: in values that JSON has, so that `spec.to_json()` works."""

from collections.abc import Mapping
from copy import copy
from dataclasses import asdict, is_dataclass
from enum import Enum
from inspect import isfunction
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium.envs.registration import EnvSpec


def plain_spec(spec: EnvSpec | None) -> EnvSpec | None:
    """The same spec with plain arguments, from which the same env can be made."""
    if spec is None:
        return None
    plain = copy(spec)
    plain.kwargs = _plain(spec.kwargs)
    return plain


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | range):
        return [_plain(item) for item in value]
    if is_dataclass(value) and not isinstance(value, type):
        return _plain(asdict(value))
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, Path):
        return str(value)
    if isfunction(value) and "<" not in value.__qualname__:
        return f"{value.__module__}:{value.__qualname__}"
    return value.tolist() if isinstance(value, np.ndarray | np.generic) else value
