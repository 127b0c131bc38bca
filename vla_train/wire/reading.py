"""What both protocols ask of a message's parts: an image, a state, a chunk of actions. What is wrong is said by its name."""

from typing import Any

import numpy as np

from vla_train.types import IMAGE
from vla_train.wire.packing import WireError

WRIST = "wrist_image"
STATE = "state"
OBSERVED = (IMAGE, WRIST, STATE)
"""Keys of our observations that both protocols have a place for."""
STATE_SIZE = 8
"""Numbers of `state`: end-effector position, axis-angle, two gripper joints."""
_MAX_TEXT = 2000
"""Most characters of an instruction."""


def read_image(value: Any, name: str) -> np.ndarray:
    """(H, W, 3) uint8.

    Raises:
        WireError: It is anything else.
    """
    if not (isinstance(value, np.ndarray) and value.dtype == np.uint8 and value.ndim == 3 and value.shape[-1] == 3):
        raise WireError(f"{name} must be an array (H, W, 3) of uint8, got {_what(value)}")
    if min(value.shape) < 1:
        raise WireError(f"{name} is empty: {value.shape}")
    return value


def read_state(value: Any, name: str) -> np.ndarray:
    """(8,) float32.

    Raises:
        WireError: It is anything else, or not finite.
    """
    array = _numbers(value, name)
    if array.shape != (STATE_SIZE,):
        raise WireError(f"{name} must have shape ({STATE_SIZE},), got {array.shape}")
    return array


def read_instruction(value: Any, name: str) -> str:
    """A text that says something.

    Raises:
        WireError: It is anything else, or longer than any instruction.
    """
    if not isinstance(value, str) or not value.strip():
        raise WireError(f"{name} must be a text, got {_what(value)}")
    if len(value) > _MAX_TEXT:
        raise WireError(f"{name} has {len(value)} characters, at most {_MAX_TEXT} are taken")
    return value


def read_actions(value: Any, *, chunk_size: int, action_dim: int) -> np.ndarray:
    """(K, A) float32: the first K of the actions that a server decided, one or a chunk.

    Raises:
        WireError: There are fewer, they are of another size, or not finite.
    """
    array = _numbers(value, "actions")
    chunk = array[None] if array.ndim == 1 else array
    if chunk.ndim != 2 or chunk.shape[1] != action_dim:
        raise WireError(f"actions must have shape ({action_dim},) or (N, {action_dim}), got {array.shape}")
    if len(chunk) < chunk_size:
        raise WireError(
            f"{len(chunk)} of {chunk_size} actions: set policy.chunk_size to what the server decides at once, or less"
        )
    return chunk[:chunk_size]


def _numbers(value: Any, name: str) -> np.ndarray:
    """As float32."""
    if value is None:
        raise WireError(f"{name} are missing")
    try:
        array = np.asarray(value, np.float32)
    except (TypeError, ValueError):
        raise WireError(f"{name} must be numbers, got {_what(value)}") from None
    if not np.isfinite(array).all():
        raise WireError(f"{name} contain NaN or infinity")
    return array


def _what(value: Any) -> str:
    if isinstance(value, np.ndarray):
        return f"{value.dtype} {value.shape}"
    return "nothing" if value is None else f"{type(value).__name__} {str(value)[:40]!r}"
