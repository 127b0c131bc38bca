"""A frozen linear layer in 4 bits (NF4, arXiv 2305.14314): a quarter of bfloat16's memory, on any GPU.

Each 64 neighbouring numbers of a row share a float32 scale, and each is one of 16 levels. Products are those of the model's
own dtype: bitsandbytes spreads the weight out for the time of one product, forward and again backward.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

_BLOCK = 64
"""Numbers that share a scale."""


def require_nf4() -> None:
    """Refuse a machine without bitsandbytes.

    Raises:
        ImportError: It is not installed.
    """
    try:
        import bitsandbytes  # noqa: F401 (registers its operators with PyTorch)
    except ImportError:
        raise ImportError("policy.base_dtype nf4 needs bitsandbytes: pip install 'vla-train[nf4]'") from None


def quantise(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Packed numbers (out * in / 2, 1), two a byte, and scales (out * in / 64,) of a weight.

    Raises:
        ValueError: The number of inputs is not a multiple of 64.
    """
    if weight.shape[1] % _BLOCK:
        raise ValueError(f"the number of inputs must be a multiple of {_BLOCK}, got {weight.shape[1]}")
    require_nf4()
    packed, scales = torch.ops.bitsandbytes.quantize_4bit(weight.contiguous(), _BLOCK, "nf4", torch.uint8)
    return packed, scales.float()


def dequantise(packed: Tensor, scales: Tensor, shape: Sequence[int], dtype: torch.dtype = torch.float32) -> Tensor:
    """The weight that they stand for: (out, in)."""
    return torch.ops.bitsandbytes.dequantize_4bit(packed, scales, _BLOCK, "nf4", list(shape), dtype)


def in_features(packed: Tensor, out_features: int) -> int:
    """The other width of a layer."""
    return 2 * packed.numel() // out_features
