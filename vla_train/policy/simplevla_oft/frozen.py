"""Linear layers that are frozen, with an adapter or without, in as many bits as asked for: as they are, in FP8, or in NF4.

    y  = x W^T + scaling h B^T        h = x A^T, A (r, in), B (out, r)
    dx = dy W + dh A                  dh = scaling dy B,  dA = dh^T x,  dB = scaling dy^T h

Only the language model's blocks are quantised: nine tenths of the weights and of the arithmetic. It is done once, from the
weights of the checkpoint. Adapters stay beside them, so the module that samples is the module that trains.

Products are operators of their own to torch.compile, each a product and an adapter's part added to it in place: the wide sum
would be copied otherwise, which costs as much as the adapter.
"""

from collections.abc import Callable
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vla_train.policy.precision import split_sums
from vla_train.policy.simplevla_oft import fp8, nf4
from vla_train.policy.simplevla_oft.llama import Llama


class QuantisedLinear(nn.Module):
    """A linear layer without bias, frozen in FP8 or NF4."""

    shape: torch.Size
    """(out, in)."""
    base_dtype: Literal["fp8", "nf4"]
    values: Tensor
    scales: Tensor
    shift: Tensor | None

    def __init__(self, linear: nn.Linear, base_dtype: Literal["fp8", "nf4"], *, rank: int) -> None:
        """Quantises a layer; `rank` is that of the adapter on it, or 0.

        Raises:
            ValueError: Its width does not suit.
        """
        super().__init__()
        assert linear.bias is None
        self.shape = linear.weight.shape
        self.base_dtype = base_dtype
        weight = linear.weight.detach()
        values, scales, shift = fp8.quantise(weight, rank=rank) if base_dtype == "fp8" else (*nf4.quantise(weight), None)
        self.register_buffer("values", values)
        self.register_buffer("scales", scales)
        self.register_buffer("shift", shift)

    def forward(self, x: Tensor) -> Tensor:
        return frozen_product(x.flatten(0, -2), self).unflatten(0, x.shape[:-1])

    def weight(self) -> Tensor:
        """What the layer stands for: (out, in) float32."""
        dequantise = fp8.dequantise if self.base_dtype == "fp8" else nf4.dequantise
        return dequantise(self.values, self.scales, self.shape)

    def take_adapter(self, lora_b: Tensor, scaling: float) -> None:
        """Bring the present B (out, r) of the layer's adapter to where the product reads it."""
        if self.base_dtype == "fp8":
            assert self.shift is not None
            fp8.take_adapter(lora_b, scaling, self.values, self.scales, self.shift, in_features=self.shape[1])


def frozen_product(
    x: Tensor, layer: nn.Module, a: Tensor | None = None, b: Tensor | None = None, *, scaling: float = 1.0
) -> Tensor:
    """x (R, in) through a frozen layer, and through its adapter where it has one: (R, out), with gradients to x, A and B."""
    h = None if a is None else _reduce(x.detach(), a.detach())
    if isinstance(layer, nn.Linear):
        return _plain(x, a, b, h, scaling, layer.weight, layer.bias)
    assert isinstance(layer, QuantisedLinear)
    if layer.base_dtype == "nf4":
        return _nf4(x, a, b, h, scaling, layer.values, layer.scales, layer.shape[0])
    assert layer.shift is not None
    return _fp8(x, a, b, h, scaling, layer.values, layer.scales, layer.shift)


# --- the operators: what belongs to an adapter is None without one; `first` and `second` are the layer's tensors


def _operator(name: str, width: Callable[..., int]) -> Callable[[Callable[..., Tensor]], Callable[..., Tensor]]:
    """Makes a function, whose first argument is (R, any), an operator that torch.compile calls and does not look into.

    Args:
        name: Of the operator.
        width: Of its output (R, width), which has the first argument's dtype; from the other arguments.
    """

    def define(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        operator = torch.library.custom_op(f"vla_train::{name}", function, mutates_args=())
        operator.register_fake(lambda x, *others: x.new_empty(x.shape[0], width(*others)))
        return operator

    return define


def _linear_plus(x: Tensor, weight: Tensor, bias: Tensor | None, h: Tensor | None, b: Tensor | None, scaling: float) -> Tensor:
    """x W^T + bias + scaling h b."""
    y = F.linear(x, weight, bias)
    return y if h is None or b is None else y.addmm_(h, b, alpha=scaling)


@_operator("reduce", lambda a: len(a))
def _reduce(x: Tensor, a: Tensor) -> Tensor:
    """x A^T."""
    return x @ a.T


@torch.library.custom_op("vla_train::adapter_gradients", mutates_args=())
def _adapter_gradients(dy: Tensor, dh: Tensor, x: Tensor, h: Tensor, scaling: float) -> tuple[Tensor, Tensor]:
    """dA and dB: thin products over all rows, which are too slow unless they are split along the sum."""
    with split_sums():
        return dh.T @ x, (dy.T @ h).mul_(scaling)


@_adapter_gradients.register_fake
def _(dy: Tensor, dh: Tensor, x: Tensor, h: Tensor, scaling: float) -> tuple[Tensor, Tensor]:
    return x.new_empty(dh.shape[1], x.shape[1]), x.new_empty(dy.shape[1], h.shape[1])


@_operator("plain_product", lambda a, b, h, scaling, first, second: first.shape[0])
def _plain(
    x: Tensor, a: Tensor | None, b: Tensor | None, h: Tensor | None, scaling: float, first: Tensor, second: Tensor | None
) -> Tensor:
    return _linear_plus(x, first, second, h, None if b is None else b.T, scaling)


@_operator("plain_gradient", lambda dh, a, first, second: first.shape[1])
def _plain_gradient(dy: Tensor, dh: Tensor | None, a: Tensor | None, first: Tensor, second: Tensor | None) -> Tensor:
    return _linear_plus(dy, first.T, None, dh, a, 1.0)


@_operator("nf4_product", lambda a, b, h, scaling, first, second, out_features: out_features)
def _nf4(
    x: Tensor,
    a: Tensor | None,
    b: Tensor | None,
    h: Tensor | None,
    scaling: float,
    first: Tensor,
    second: Tensor,
    out_features: int,
) -> Tensor:
    weight = nf4.dequantise(first, second, (out_features, x.shape[1]), x.dtype)
    return _linear_plus(x, weight, None, h, None if b is None else b.T, scaling)


@_operator("nf4_gradient", lambda dh, a, first, second, in_features: in_features)
def _nf4_gradient_op(
    dy: Tensor, dh: Tensor | None, a: Tensor | None, first: Tensor, second: Tensor, in_features: int
) -> Tensor:
    weight = nf4.dequantise(first, second, (dy.shape[1], in_features), dy.dtype)
    return _linear_plus(dy, weight.T, None, dh, a, 1.0)


def _nf4_gradient(dy: Tensor, dh: Tensor | None, a: Tensor | None, first: Tensor, second: Tensor) -> Tensor:
    return _nf4_gradient_op(dy, dh, a, first, second, nf4.in_features(first, dy.shape[1]))


@_operator("fp8_product", lambda a, b, h, scaling, first, second, shift: first.shape[0])
def _fp8(
    x: Tensor,
    a: Tensor | None,
    b: Tensor | None,
    h: Tensor | None,
    scaling: float,
    first: Tensor,
    second: Tensor,
    shift: Tensor,
) -> Tensor:
    values, row_scales = fp8.quantise_rows(x, h=h, shift=shift, width=first.shape[1])
    return fp8.scaled_product(values, row_scales, first, second).to(x.dtype)  # the adapter's part is in both factors


@_operator("fp8_gradient", lambda dh, a, transposed, second: transposed.shape[0])
def _fp8_gradient_op(dy: Tensor, dh: Tensor | None, a: Tensor | None, transposed: Tensor, second: Tensor) -> Tensor:
    values, row_scales = fp8.quantise_rows(dy, factors=second.flatten())
    ones = torch.ones_like(transposed[:, :1], dtype=torch.float32)
    dx = fp8.scaled_product(values, row_scales, transposed, ones).to(dy.dtype)
    return dx if dh is None or a is None else dx.addmm_(dh, a)


def _fp8_gradient(dy: Tensor, dh: Tensor | None, a: Tensor | None, first: Tensor, second: Tensor) -> Tensor:
    in_features = first.shape[1] if a is None else a.shape[1]
    transposed = first[:, :in_features].T.contiguous()  # the matrix units want both factors' common dimension last
    return _fp8_gradient_op(dy, dh, a, transposed, second)


def _differentiate(product: Any, gradient: Callable[..., Tensor]) -> None:
    """Give a product its backward pass: `gradient` computes dx."""

    def keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, a, b, h, scaling, first, second, *others = inputs
        ctx.save_for_backward(None if a is None else x, a, b, h, first, second)
        ctx.scaling, ctx.num_others = scaling, len(others)

    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, a, b, h, first, second = ctx.saved_tensors
        dh = da = db = None
        if a is not None:
            dh = (dy @ b) * ctx.scaling
            da, db = _adapter_gradients(dy, dh, x, h, ctx.scaling)
        dx = gradient(dy, dh, a, first, second) if ctx.needs_input_grad[0] else None
        return dx, da, db, *(None,) * (4 + ctx.num_others)

    product.register_autograd(backward, setup_context=keep)


_differentiate(_plain, _plain_gradient)
_differentiate(_nf4, _nf4_gradient)
_differentiate(_fp8, _fp8_gradient)


# --- all of a language model

_LINEARS = ("self_attn.qkv_proj", "self_attn.o_proj", "mlp.gate_up_proj", "mlp.down_proj")


def require_base_dtype(base_dtype: str, device: torch.device) -> None:
    """Refuse a precision of the base that this machine cannot compute with, before weights are read.

    Raises:
        ValueError: The GPU cannot.
        ImportError: A package is missing.
    """
    if base_dtype == "fp8":
        fp8.require_fp8(device)
    elif base_dtype == "nf4":
        nf4.require_nf4()


def quantise_base(llama: Llama, base_dtype: Literal["fp8", "nf4"]) -> None:
    """Quantise the blocks' linear layers in place, one after the other; adapters are on them already.

    Raises:
        ValueError: A layer's width does not suit; the message names it.
    """
    for block in llama.layers:
        for name in _LINEARS:
            layer = block.get_submodule(name)
            adapted = not isinstance(layer, nn.Linear)
            place = f"{name}.base_layer" if adapted else name
            linear = block.get_submodule(place)
            assert isinstance(linear, nn.Linear)
            rank = len(block.get_parameter(f"{name}.lora_A")) if adapted else 0
            try:
                block.set_submodule(place, QuantisedLinear(linear, base_dtype, rank=rank))
            except ValueError as error:
                raise ValueError(f"policy.base_dtype {base_dtype}: {name}: {error}") from None
