"""Gymnasium's info dicts of vector envs: beside each key, `_key` says which of the N slots it speaks of.

Invariant: an info shares no memory with anything else, and says nothing (zero, or None) of slots outside the mask.
"""

from typing import Any

import numpy as np


def with_masks(info: dict[str, Any], mask: np.ndarray) -> dict[str, Any]:
    """An info about the slots in `mask`, (N,) bool, from arrays of N or infos."""
    return {
        name: value
        for key, item in info.items()
        for name, value in ((key, item if isinstance(item, dict) else _only(mask, item)), (f"_{key}", mask.copy()))
    }


def of_slot(info: dict[str, Any], slot: int) -> dict[str, Any]:
    """What a vector env's info says of one slot."""
    return {
        key: of_slot(value, slot) if isinstance(value, dict) else _as_python(value[slot])
        for key, value in info.items()
        if not key.startswith("_") and (f"_{key}" not in info or info[f"_{key}"][slot])
    }


def _only(mask: np.ndarray, values: np.ndarray) -> np.ndarray:
    return np.where(mask, values, np.full((), None if values.dtype == object else 0, values.dtype))


def _as_python(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value
