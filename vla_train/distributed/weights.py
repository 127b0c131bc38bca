"""Weights as plain arrays, so that an object store holds them once and its readers map them instead of unpickling tensors."""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, kw_only=True, slots=True)
class PackedWeight:
    """One tensor."""

    content: np.ndarray
    """(bytes,) uint8."""
    dtype: str
    """Name within torch: "bfloat16", ..."""
    shape: tuple[int, ...]


def pack_weights(weights: Mapping[str, "torch.Tensor"]) -> dict[str, PackedWeight]:
    """Bring tensors to the host; those that are there already are not copied."""
    import torch

    return {
        name: PackedWeight(
            content=weight.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy(),
            dtype=str(weight.dtype).removeprefix("torch."),
            shape=tuple(weight.shape),
        )
        for name, weight in weights.items()
    }


def unpack_weights(packed: Mapping[str, PackedWeight]) -> dict[str, "torch.Tensor"]:
    """The tensors, in the memory of their arrays: to be read, not written."""
    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # torch warns of arrays that cannot be written
        return {
            name: torch.from_numpy(weight.content).view(getattr(torch, weight.dtype)).reshape(weight.shape)
            for name, weight in packed.items()
        }
