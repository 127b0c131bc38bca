"""Sampling with the language model's weights in FP8: twice the matrix rate of bfloat16, at some cost in precision.

    weight (out, in) --one scale per row--> e4m3, quantised when weights change
    input (rows, in) --one scale per row--> e4m3, quantised on the way
    product of both, added up in float32 --times both scales--> bfloat16

Only the linear layers of the language model's blocks are quantised: nine tenths of the arithmetic. The model itself, which
trains and is saved, is untouched; what samples is a second module that shares all other weights with it. Log-probs of
sampling are those of the quantised policy, which is the one that sampled.
"""

import copy

import torch
from torch import Tensor, nn

from vla_train.policy.simplevla_oft.lora import LoraLayer, full_tensor, merged_weight
from vla_train.policy.simplevla_oft.model import SimpleVLAOFT

_E4M3 = torch.float8_e4m3fn
_LARGEST = torch.finfo(_E4M3).max
_LINEARS = ("self_attn.qkv_proj", "self_attn.o_proj", "mlp.gate_up_proj", "mlp.down_proj")
_MULTIPLE = 16
"""The matrix units take widths in multiples of this."""
_CAPABILITY = (8, 9)
"""The first CUDA devices that multiply FP8."""


def quantise_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """(R, C) to e4m3 values (R, C) and float32 scales (R, 1): the largest of each row becomes the largest there is."""
    x = x.float()
    scales = x.abs().amax(-1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny * _LARGEST) / _LARGEST
    return (x / scales).to(_E4M3), scales


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
    return torch._scaled_mm(
        x, weight.T, scale_a=x_scales, scale_b=weight_scales.T, out_dtype=torch.bfloat16, use_fast_accum=True
    )


def product_reference(x: Tensor, weight: Tensor) -> Tensor:
    """What quantising both factors and `scaled_product` compute, the slow way: (R, C), (O, C) to (R, O) float32."""
    dequantised = [values.float() * scales for values, scales in map(quantise_rows, (x, weight))]
    return dequantised[0] @ dequantised[1].T


class Fp8Linear(nn.Module):
    """A linear layer without bias whose weight is quantised and cannot be trained."""

    values: Tensor
    """(out, in) e4m3."""
    scales: Tensor
    """(out, 1) float32."""

    def __init__(self, in_features: int, out_features: int, device: torch.device) -> None:
        super().__init__()
        self.register_buffer("values", torch.zeros(out_features, in_features, dtype=_E4M3, device=device))
        self.register_buffer("scales", torch.ones(out_features, 1, device=device))

    @torch.no_grad()
    def take(self, weight: Tensor) -> None:
        """Quantise a weight (out, in), in place: addresses stay."""
        values, scales = quantise_rows(weight)
        self.values.copy_(values)
        self.scales.copy_(scales)

    def forward(self, x: Tensor) -> Tensor:
        values, scales = quantise_rows(x.reshape(-1, x.shape[-1]))
        return scaled_product(values, scales, self.values, self.scales).to(x.dtype).reshape(*x.shape[:-1], -1)


def fp8_copy(model: SimpleVLAOFT) -> SimpleVLAOFT:
    """The module that samples: `model`, sharing its weights, but for FP8 linear layers in the language model's blocks.

    They hold nothing before `quantise` has filled them.

    Raises:
        ValueError: The GPU cannot multiply FP8, or a layer's width is not a multiple of 16.
    """
    if model.device.type == "cuda" and torch.cuda.get_device_capability(model.device) < _CAPABILITY:
        raise ValueError(
            f"policy.fp8 needs a GPU of compute capability {_CAPABILITY[0]}.{_CAPABILITY[1]} or later (Ada, Hopper), "
            f"got {torch.cuda.get_device_name(model.device)}"
        )
    shared = [*model.parameters(), model.config, model.companion_files, model.vision_backbone, model.projector]
    sampler = copy.deepcopy(model, {id(value): value for value in shared})
    for block in sampler.language_model.model.layers:
        for name in _LINEARS:
            out_features, in_features = _plain_weight(block.get_submodule(name)).shape
            if in_features % _MULTIPLE or out_features % _MULTIPLE:
                raise ValueError(
                    f"policy.fp8 needs layers whose widths are multiples of {_MULTIPLE}, "
                    f"{name} is {in_features} to {out_features}"
                )
            block.set_submodule(name, Fp8Linear(in_features, out_features, model.device))
    return sampler


def quantise(model: SimpleVLAOFT, sampler: SimpleVLAOFT) -> None:
    """Bring `model`'s present weights, adapters merged, into its `fp8_copy`."""
    for block, quantised in zip(model.language_model.model.layers, sampler.language_model.model.layers, strict=True):
        for name in _LINEARS:
            layer, target = block.get_submodule(name), quantised.get_submodule(name)
            assert isinstance(target, Fp8Linear)
            target.take(merged_weight(layer) if isinstance(layer, LoraLayer) else full_tensor(_plain_weight(layer)))


def _plain_weight(layer: nn.Module) -> Tensor:
    linear = layer.get_base_layer() if isinstance(layer, LoraLayer) else layer
    assert isinstance(linear, nn.Linear)
    return linear.weight
