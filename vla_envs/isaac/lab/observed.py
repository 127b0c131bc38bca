"""Isaac Lab's observation groups as pictures and a state: which of its tensors they are, and whether they can be."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import gymnasium as gym
import numpy as np
import torch

from vla_envs.vector.spaces import observation_space


class Observed:
    """Reads observations.

    Args:
        example: What the env returned once.
        images: Key of an observation -> "group/term", or "group" for one whose terms are concatenated.
        state: The same for the state; None without one.
        instruction: Of all episodes.

    Raises:
        ValueError: A name that the env does not have, or a tensor that is no picture or no state.
    """

    def __init__(self, example: Mapping[str, Any], *, images: Mapping[str, str], state: str | None, instruction: str) -> None:
        self._images, self._state = dict(images), state
        self._instruction = instruction
        arrays = self.read(example, torch.ones(len(_first_tensor(example)), dtype=torch.bool))
        text = observation_space((), [instruction])["instruction"]
        spaces: dict[str, gym.Space] = {key: gym.spaces.Box(0, 255, tuple(arrays[key].shape[1:]), np.uint8) for key in images}
        if state is not None:
            spaces["state"] = gym.spaces.Box(-np.inf, np.inf, tuple(arrays["state"].shape[1:]), np.float32)
        self.space = gym.spaces.Dict({**spaces, "instruction": text})
        """Of one slot."""

    def read(self, observation: Mapping[str, Any], mask: torch.Tensor) -> dict[str, torch.Tensor]:
        """The rows in `mask`, (N,) bool, where they are: pictures (n, H, W, 3) uint8, `state` (n, D) float32."""
        arrays = {}
        for key, name in self._images.items():
            tensor = _find(observation, name)
            arrays[key] = _picture(tensor[mask.to(tensor.device)], name)
        if self._state is not None:
            tensor = _find(observation, self._state)
            rows = tensor[mask.to(tensor.device)]
            if rows.ndim < 2 or not rows.dtype.is_floating_point:
                raise ValueError(f"{self._state} is no state: it has shape {tuple(tensor.shape)} and type {tensor.dtype}")
            arrays["state"] = rows.flatten(1).float()
        return arrays


def _first_tensor(observation: Mapping[str, Any]) -> torch.Tensor:
    first = next(iter(observation.values()))
    return _first_tensor(first) if isinstance(first, Mapping) else first


def _find(observation: Mapping[str, Any], name: str) -> torch.Tensor:
    group, _, term = name.partition("/")
    found = observation.get(group)
    if term and isinstance(found, Mapping):
        found = found.get(term)
    elif term:
        found = None
    if not isinstance(found, torch.Tensor):
        known = [
            f"{key}/{inner}" if isinstance(value, Mapping) else key
            for key, value in observation.items()
            for inner in (value if isinstance(value, Mapping) else [""])
        ]
        raise ValueError(f"the env observes no {name!r}: it has {', '.join(known)}")
    return found


def _picture(rows: torch.Tensor, name: str) -> torch.Tensor:
    """(n, H, W, 3) uint8 from (n, H, W, C) or (n, C, H, W), of bytes or of floats in [0, 1]."""
    if rows.ndim == 4 and rows.shape[-1] not in (1, 3, 4) and rows.shape[1] in (1, 3, 4):
        rows = rows.permute(0, 2, 3, 1)
    if rows.ndim != 4 or rows.shape[-1] not in (1, 3, 4):
        raise ValueError(f"{name} is no picture: it has shape (N, {', '.join(map(str, rows.shape[1:]))})")
    rows = rows[..., :3].expand(-1, -1, -1, 3)
    if rows.dtype.is_floating_point:
        if rows.numel() and (rows.min() < 0.0 or rows.max() > 1.0):
            raise ValueError(f"{name} is no picture: its numbers are not in [0, 1]; take a term without normalisation")
        rows = (rows * 255.0).round()
    return rows.to(torch.uint8)
