"""Initial states of a user's own: an array, or a file of one, checked against the scene that they are for."""

from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from vla_envs.errors import MissingDependencyError

SUFFIXES = (".npy", ".npz", ".pruned_init", ".init")


def read_init_states(source: Any, *, width: int, task: str) -> np.ndarray:
    """(I, 1 + nq + nv) float64: [time, qpos, qvel] each.

    Args:
        source: An array, or the path of a file: `.npy`, `.npz` with one array or one called `states`, or LIBERO's own
            `.pruned_init` and `.init`, which need PyTorch.
        width: 1 + nq + nv of the scene.
        task: What the scene is called in errors.

    Raises:
        ValueError: The file cannot be read; or what is in it are no states of the scene, or are not finite.
        MissingDependencyError: The file needs PyTorch, and it is not installed.
    """
    given, name = (_read(Path(source)), str(source)) if isinstance(source, str | PathLike) else (source, "init_states")
    try:
        states = np.array(given, np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name} must be numbers, states of {task} by rows: {error}") from error
    if states.ndim != 2 or len(states) == 0 or states.shape[1] != width:
        raise ValueError(f"{name} must have shape (number of states, {width}) for {task}, got {states.shape}")
    if not np.isfinite(states).all():
        raise ValueError(f"{name}: state {int(np.argmin(np.isfinite(states).all(axis=1)))} of {task} is not finite")
    return states


def _read(file: Path) -> Any:
    if file.suffix not in SUFFIXES:
        raise ValueError(f"init_states must be an array or a file of {', '.join(SUFFIXES)}, got {str(file)!r}")
    if not file.is_file():
        raise ValueError(f"init_states: {file} is missing")
    try:
        if file.suffix in (".npy", ".npz"):
            loaded = np.load(file, allow_pickle=False)
            if isinstance(loaded, np.ndarray):
                return loaded
            with loaded:
                names = loaded.files
                return loaded["states" if len(names) > 1 else names[0]]
        return _read_torch(file)
    except MissingDependencyError:
        raise
    except Exception as error:  # whatever comes of a file that is something else
        raise ValueError(f"init_states: {file} cannot be read as states: {error}") from error


def _read_torch(file: Path) -> Any:
    """An array as PyTorch pickles it; nothing else that a pickle may hold is loaded."""
    try:
        import torch
    except ImportError as error:
        raise MissingDependencyError(f"{file} needs PyTorch to be read: pip install torch") from error
    rebuild = np.empty(0).__reduce__()[0]
    allowed: list[Any] = [rebuild, np.ndarray, np.dtype, *(type(np.dtype(kind)) for kind in "fdilq")]
    allowed.append((rebuild, "numpy.core.multiarray._reconstruct"))  # its place in NumPy 1
    with torch.serialization.safe_globals(allowed):
        return np.atleast_2d(torch.load(file, map_location="cpu", weights_only=True))  # LIBERO-plus stores a single state flat
