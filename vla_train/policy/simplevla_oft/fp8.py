"""A frozen linear layer in FP8: half the memory of bfloat16, and up to twice its rate, forward and backward.

    weight (out, in)  --one scale per row-->  e4m3, once
    input (R, in)     --one scale per row-->  e4m3, on the way
    y     = (input @ weight^T), added up in float32, times both scales, as bfloat16
    dx    = (dy * weight's scales, quantised like the input) @ weight's values, times the first one's scales

The weight has no gradient. Its scales lie along the dimension that the backward product adds up, so they go into the factor
that is quantised anyway.

An adapter's product h B^T rides along: y of a 7B model is so wide that adding to it afterwards costs a third of the product.
One e4m3 number has 4 significant bits, the sum of two has 8, as bfloat16 has. So h and B are each split in two, and three of
the four products between them are appended to the dimension that is added up:

    [x | h1 | h2 | h1] @ [W | B1 | B1 | B2]^T     h = h1 + h2, B = B1 + B2, and h2 B2 is below rounding

They share the rows' scales; a power of two moves range from B to h where B would not fit, and from h to B where B is small.
"""

import torch
from torch import Tensor

_E4M3 = torch.float8_e4m3fn
_LARGEST = torch.finfo(_E4M3).max
_MULTIPLE = 16
"""The matrix units take widths in multiples of this."""
_LINE = 128
"""Bytes of a line of the GPU's memory: products are a sixth slower where rows do not begin with one."""
_LEAST_SHIFT = -6
"""Exponent of the power of two between h and B: B of 1e-7 keeps five bits then, and h has range enough beside outliers of x."""
_CAPABILITY = (8, 9)
"""The first CUDA devices that multiply FP8."""


def require_fp8(device: torch.device) -> None:
    """Refuse a GPU that cannot multiply FP8.

    Raises:
        ValueError: It is older than Ada and Hopper.
    """
    if device.type == "cuda" and torch.cuda.get_device_capability(device) < _CAPABILITY:
        raise ValueError(
            f"policy.base_dtype fp8 needs a GPU of compute capability {_CAPABILITY[0]}.{_CAPABILITY[1]} or later (Ada, "
            f"Hopper), got {torch.cuda.get_device_name(device)}: nf4 needs none"
        )


def quantise_rows(
    x: Tensor,
    *,
    factors: Tensor | None = None,
    h: Tensor | None = None,
    shift: Tensor | None = None,
    width: int | None = None,
) -> tuple[Tensor, Tensor]:
    """The largest number of each row becomes the largest there is in e4m3.

    Args:
        x: (R, C).
        factors: (C,) for its columns, first.
        h: (R, r) of an adapter; its halves go beside x.
        shift: What h is multiplied by, first.
        width: W of the values: C + 3 r, or more, filled with zeros.

    Returns:
        e4m3 values (R, W) and float32 scales (R, 1).
    """
    width = x.shape[1] if width is None else width
    if x.device.type == "cuda":
        from vla_train.policy.simplevla_oft import fp8_kernels

        return fp8_kernels.quantise_rows(x, factors=factors, h=h, shift=shift, width=width)
    x = x.float() if factors is None else x.float() * factors
    reduced = x[:, :0] if h is None or shift is None else h.float() * shift
    largest = torch.cat([x, reduced], dim=1).abs().amax(-1, keepdim=True)
    largest = largest.clamp(min=torch.finfo(torch.float32).tiny * _LARGEST)
    inverse = torch.full_like(largest, _LARGEST) / largest  # `number / tensor` would round twice
    first, second = _halves(reduced * inverse)
    padding = first.new_zeros(len(first), width - x.shape[1] - 3 * reduced.shape[1])
    return torch.cat([(x * inverse).to(_E4M3), first, second, first, padding], dim=1), largest / _LARGEST


def _halves(x: Tensor) -> tuple[Tensor, Tensor]:
    """Two e4m3 tensors whose sum is nearly x."""
    first = x.to(_E4M3)
    return first, (x - first.float()).to(_E4M3)


def scaled_product(x: Tensor, x_scales: Tensor, weight: Tensor, weight_scales: Tensor) -> Tensor:
    """x @ weight.T of quantised values, times their scales.

    Args:
        x: (R, C) e4m3.
        x_scales: (R, 1).
        weight: (O, C) e4m3.
        weight_scales: (O, 1).

    Returns:
        (R, O) bfloat16.
    """
    if x.device.type == "cpu":  # where PyTorch before 2.13 has no scales by row
        return (x.float() @ weight.float().T * x_scales * weight_scales.T).bfloat16()
    return torch._scaled_mm(
        x, weight.T, scale_a=x_scales, scale_b=weight_scales.T, out_dtype=torch.bfloat16, use_fast_accum=True
    )


def product_reference(x: Tensor, weight: Tensor) -> Tensor:
    """What quantising both factors and `scaled_product` compute, the slow way: (R, C), (O, C) to (R, O) float32."""
    dequantised = [values.float() * scales for values, scales in map(quantise_rows, (x, weight))]
    return dequantised[0] @ dequantised[1].T


# --- a layer: values (out, in + 3 r + padding) with its adapter's halves, scales (out, 1), the power of two between h and B


def quantise(weight: Tensor, *, rank: int) -> tuple[Tensor, Tensor, Tensor]:
    """The tensors of a layer whose adapter, of `rank`, adds nothing yet; 0 is no adapter.

    Raises:
        ValueError: A width is not a multiple of 16.
    """
    if any(width % _MULTIPLE for width in weight.shape):
        raise ValueError(f"widths must be multiples of {_MULTIPLE}, got {weight.shape[1]} to {weight.shape[0]}")
    values, scales = quantise_rows(weight)
    room = values.new_zeros(len(weight), -(-3 * rank // _LINE) * _LINE)
    return torch.cat([values, room], dim=1), scales, torch.ones((), device=weight.device)


def dequantise(values: Tensor, scales: Tensor, shape: torch.Size) -> Tensor:
    """The weight that they stand for: (out, in) float32."""
    return values[:, : shape[1]].float() * scales


def take_adapter(lora_b: Tensor, scaling: float, values: Tensor, scales: Tensor, shift: Tensor, *, in_features: int) -> None:
    """Bring an adapter's B (out, r) into the layer's tensors, in place."""
    target = values[:, in_features : in_features + 3 * lora_b.shape[1]]
    in_units = scaling * lora_b.float() / scales
    shift.copy_((in_units.abs().amax() / _LARGEST).log2().ceil().clamp(min=_LEAST_SHIFT).exp2())
    first, second = _halves(in_units / shift)
    target.copy_(torch.cat([first, first, second], dim=1))
