"""Checks what users give to a vector env's methods, before anything moves, and returns it as the arrays the env works with."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np


def read_actions(actions: Any, shape: tuple[int, ...], *, chunk_size: int | None) -> Any:
    """(N, k, A) float64 from actions (N, A), or (N, k, A) with k from 1 to K; a tensor on a GPU stays there, float32.

    Args:
        actions: What the user gave.
        shape: Of the action space: (N, A) or (N, K, A).
        chunk_size: K; None: there are no chunks.

    Raises:
        ValueError: Wrong shape, or a number that is not finite.
    """
    if getattr(actions, "is_cuda", False):
        check_shape("actions", tuple(actions.shape), shape, chunk_size=chunk_size)
        if not bool(actions.isfinite().all()):
            raise ValueError(f"actions must be finite, got {float(actions[~actions.isfinite()][0])}")
        return actions.detach().float().reshape(shape[0], -1, shape[-1])
    if hasattr(actions, "detach"):  # a tensor in host memory, of any type
        actions = actions.detach().double()
    chunk = np.asarray(actions, np.float64)
    check_shape("actions", chunk.shape, shape, chunk_size=chunk_size)
    if not np.isfinite(chunk).all():
        raise ValueError(f"actions must be finite, got {chunk[~np.isfinite(chunk)][0]}")
    return np.ascontiguousarray(chunk.reshape(shape[0], -1, shape[-1]))


def check_shape(name: str, given: tuple[int, ...], shape: tuple[int, ...], *, chunk_size: int | None) -> None:
    """Raise `ValueError` for a shape that is neither the action space's, `shape`, nor that of a shorter chunk."""
    if given == shape:
        return
    chunked = chunk_size is not None and len(given) == len(shape)
    if not (chunked and (*given[:-2], given[-1]) == (*shape[:-2], shape[-1]) and 1 <= given[-2] < shape[-2]):
        shorter = "" if chunk_size in (None, 1) else f"; a chunk may have 1 to {chunk_size} actions"
        raise ValueError(f"{name} must have shape {shape}, got {given}{shorter}")


def read_reset_options(options: Mapping[str, Any] | None, num_envs: int) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """The reset mask (N,) bool, all True by default, and the other options, each (N,).

    Raises:
        ValueError: Wrong shape, or a mask that is not boolean or names no slot.
    """
    chosen = dict(options or {})
    mask = np.array(chosen.pop("reset_mask", np.ones(num_envs, bool)))
    if mask.shape != (num_envs,) or mask.dtype != bool:
        raise ValueError(f"reset_mask must be ({num_envs},) bool, got {mask.shape} {mask.dtype}")
    if not mask.any():
        raise ValueError("reset_mask must be True for at least one slot, got False for all")
    arrays = {}
    for name, value in chosen.items():
        array = np.asarray(value)
        if array.shape not in ((), (num_envs,)):
            raise ValueError(f"reset option {name!r} must have shape () or ({num_envs},), got {array.shape}")
        arrays[name] = np.broadcast_to(array, (num_envs,))
    return mask, arrays


def read_seeds(seed: int | Sequence[int | None] | None, num_envs: int) -> list[list[int] | None]:
    """What each slot's random stream starts from: [seed, slot] for one seed, [its own seed] for one per slot; None keeps it.

    Raises:
        ValueError: Neither an integer nor N of them, or a negative one.
    """
    single = seed is None or isinstance(seed, int | np.integer)
    if not single and not isinstance(seed, Sequence) and getattr(seed, "ndim", None) != 1:
        raise ValueError(f"seed must be an integer, {num_envs} of them, or None, got {seed!r}")
    seeds = [seed] * num_envs if single else list(seed)  # type: ignore[arg-type]
    if len(seeds) != num_envs:
        raise ValueError(f"seed must be one number or {num_envs} of them, got {len(seeds)}")
    for number in seeds:
        if number is not None and (not isinstance(number, int | np.integer) or isinstance(number, bool) or number < 0):
            raise ValueError(f"seeds must be integers from 0 upwards, got {number!r}")
    return [
        None if number is None else [int(number), slot] if single else [int(number)]  # type: ignore[arg-type]
        for slot, number in enumerate(seeds)
    ]


def read_states(states: Sequence[np.ndarray], shapes: Sequence[tuple[int, ...]]) -> list[np.ndarray]:
    """N arrays [time, qpos, qvel] float64, of these shapes.

    Raises:
        ValueError: Not N, a wrong shape, or a number that is not finite.
    """
    if len(states) != len(shapes):
        raise ValueError(f"set_state takes {len(shapes)} states, got {len(states)}")
    checked = [np.asarray(state, np.float64) for state in states]
    for slot, (state, shape) in enumerate(zip(checked, shapes, strict=True)):
        if state.shape != shape:
            raise ValueError(f"the state of slot {slot} must have shape {shape}, got {state.shape}")
        if not np.isfinite(state).all():
            raise ValueError(f"the state of slot {slot} is not finite")
    return checked
