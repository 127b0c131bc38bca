"""LoRA adapters (arXiv 2106.09685): a frozen linear layer, and a low-rank update of it that is trained.

    y = base(x) + scaling (x A^T) B^T        A (r, in), B (out, r), scaling = alpha / r

The update is never merged while it is trained, so the base may be kept in any precision (`frozen.py`), and sampling and
training compute the same function. Adapters have the model's dtype; the optimizer keeps float32 twins of them, so that small
updates are not lost.
"""

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from vla_train.policy.simplevla_oft.frozen import QuantisedLinear, frozen_product


class LoraLinear(nn.Module):
    """A frozen linear layer with an adapter."""

    def __init__(self, base_layer: nn.Module, lora_a: Tensor, lora_b: Tensor, *, scaling: float) -> None:
        """`base_layer` maps (..., in) to (..., out); `lora_a` is (r, in), `lora_b` (out, r)."""
        super().__init__()
        self.base_layer = base_layer
        self.lora_A = nn.Parameter(lora_a)
        self.lora_B = nn.Parameter(lora_b)
        self.scaling = scaling

    def forward(self, x: Tensor) -> Tensor:
        y = frozen_product(x.flatten(0, -2), self.base_layer, self.lora_A, self.lora_B, scaling=self.scaling)
        return y.unflatten(0, x.shape[:-1])

    def update(self) -> Tensor:
        """What the adapter adds to the base's weight: (out, in) float32. All ranks must call this where it is sharded."""
        a, b = full_tensor(self.lora_A), full_tensor(self.lora_B)
        return self.scaling * (b.float() @ a.float())


def add_lora(model: nn.Module, rank: int, *, layers: Iterable[str], seed: int) -> None:
    """Freeze `model` and put adapters of `rank` on some of its linear layers, named by `layers`; they change nothing yet.

    They are scaled as OpenVLA-OFT scales them: alpha = min(rank, 16).
    """
    model.requires_grad_(False)
    device = next(model.parameters()).device
    generator = torch.Generator(device=device).manual_seed(seed)
    for name in layers:
        base = model.get_submodule(name)
        assert isinstance(base, nn.Linear)
        out_features, in_features = base.weight.shape
        bound = in_features**-0.5
        lora_a = base.weight.new_empty(rank, in_features).uniform_(-bound, bound, generator=generator)
        put_adapter(model, name, lora_a, base.weight.new_zeros(out_features, rank), scaling=min(rank, 16) / rank)


def put_adapter(model: nn.Module, name: str, lora_a: Tensor, lora_b: Tensor, *, scaling: float) -> None:
    """Put an adapter on the layer `name`."""
    model.set_submodule(name, LoraLinear(model.get_submodule(name), lora_a, lora_b, scaling=scaling))


def lora_layers(model: nn.Module) -> dict[str, LoraLinear]:
    """Adapted layers by name."""
    return {name: module for name, module in model.named_modules() if isinstance(module, LoraLinear)}


class AdaptersInProducts:
    """Keeps what quantised layers hold of their adapters as the adapters are."""

    def __init__(self, model: nn.Module) -> None:
        self._layers = [layer for layer in lora_layers(model).values() if isinstance(layer.base_layer, QuantisedLinear)]
        self._versions: list[int] | None = None

    @torch.no_grad()
    def refresh(self) -> None:
        """To be called before the model computes; does nothing where no adapter has changed in place."""
        versions = [_local(layer.lora_B)._version for layer in self._layers]
        if versions != self._versions:
            for layer in self._layers:
                assert isinstance(layer.base_layer, QuantisedLinear)
                layer.base_layer.take_adapter(full_tensor(layer.lora_B), layer.scaling)
            self._versions = versions


def _local(tensor: Tensor) -> Tensor:
    """What this rank holds of a tensor: only that knows of changes in place."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def full_tensor(tensor: Tensor) -> Tensor:
    """A detached tensor, gathered from all ranks where it is sharded (then all ranks must call this)."""
    gather = getattr(tensor, "full_tensor", None)
    return (tensor if gather is None else gather()).detach()
