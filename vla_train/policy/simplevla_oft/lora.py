"""LoRA adapters on every linear layer that runs, through peft; the module keeps its class and its place in the program."""

from collections.abc import Iterable

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

_ADAPTER = "default"


def add_lora(model: nn.Module, rank: int, *, layers: Iterable[str], seed: int) -> None:
    """Freeze `model` and put adapters of `rank` on some of its linear layers, named by `layers`.

    They are scaled as OpenVLA-OFT scales them: alpha = min(rank, 16).

    The adapters are float32 whatever the model's dtype, so that small updates are not lost; autocast computes with them in
    the model's dtype.
    """
    device = next(model.parameters()).device
    model.requires_grad_(False)
    config = LoraConfig(r=rank, lora_alpha=min(rank, 16), target_modules=list(layers), bias="none")
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        inject_adapter_in_model(config, model, adapter_name=_ADAPTER)
    for layer in lora_layers(model).values():
        layer.cast_input_dtype_enabled = False
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()


def lora_layers(model: nn.Module) -> dict[str, LoraLayer]:
    """Adapted layers by name."""
    return {name: module for name, module in model.named_modules() if isinstance(module, LoraLayer)}


def merged_weight(layer: LoraLayer) -> Tensor:
    """The adapted layer's weight as a plain linear layer would have it, in float32."""
    linears: list[nn.Linear] = [layer.get_base_layer(), layer.lora_A[_ADAPTER], layer.lora_B[_ADAPTER]]  # type: ignore[list-item]
    base, a, b = (full_tensor(linear.weight) for linear in linears)
    return base.float() + layer.scaling[_ADAPTER] * (b.float() @ a.float())


def full_tensor(tensor: Tensor) -> Tensor:
    """A detached tensor, gathered from all ranks where it is sharded (then all ranks must call this)."""
    gather = getattr(tensor, "full_tensor", None)
    return (tensor if gather is None else gather()).detach()
