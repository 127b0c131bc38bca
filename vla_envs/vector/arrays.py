"""Arrays of an env: NumPy's, or PyTorch's on the device that they were made on. PyTorch is imported when a user asks for it."""

from collections.abc import Callable
from typing import Any

import numpy as np

from vla_envs.errors import MissingDependencyError

ARRAYS = ("numpy", "torch")


def giver(arrays: str) -> Callable[[Any], Any]:
    """What turns an engine's arrays into those that a user asked for.

    Args:
        arrays: One of `ARRAYS`.

    Raises:
        MissingDependencyError: PyTorch is asked for and not installed.
    """
    if arrays == "numpy":
        return on_host
    try:
        import torch
    except ImportError as error:
        raise MissingDependencyError("arrays='torch' needs PyTorch: pip install torch") from error
    return torch.as_tensor


def on_host(array: Any) -> np.ndarray:
    """The array as NumPy's."""
    return array if isinstance(array, np.ndarray) else array.cpu().numpy()


def as_float32(array: Any) -> Any:
    """The same as float32."""
    return array.astype(np.float32) if isinstance(array, np.ndarray) else array.float()
