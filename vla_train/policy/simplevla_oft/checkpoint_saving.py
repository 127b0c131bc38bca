"""Writing checkpoints: a model as a whole in the published layout, adapters merged, or its adapters alone in peft's.

Each weight is made, merged and gathered from its shards once, and written from the host. What is written loads here
(`checkpoint.py`) and with the published code, or peft.
"""

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from vla_train.policy.simplevla_oft.adapter_files import (
    ADAPTER_CONFIG_FILE,
    ADAPTER_WEIGHTS_FILE,
    peft_config,
    peft_tensors,
    published_adapters,
)
from vla_train.policy.simplevla_oft.checkpoint import STATISTICS_FILE
from vla_train.policy.simplevla_oft.config import SimpleVLAOFTConfig
from vla_train.policy.simplevla_oft.config_json import config_to_json
from vla_train.policy.simplevla_oft.frozen import QuantisedLinear
from vla_train.policy.simplevla_oft.json_files import json_bytes
from vla_train.policy.simplevla_oft.lora import LoraLinear, full_tensor, lora_layers
from vla_train.policy.simplevla_oft.published_names import published_pieces
from vla_train.policy.simplevla_oft.weight_files import INDEX_FILE
from vla_train.safetensors_file import save_file

_SHARD_BYTES = 5_000_000_000


@dataclass(frozen=True, slots=True)
class PlainWeight:
    """A weight of the model as it would be without adapters and quantisation."""

    shape: torch.Size
    read: Callable[[], Tensor]
    """Makes it, adapters merged; where it is sharded, all ranks must call this."""


def plain_weights(model: nn.Module) -> dict[str, PlainWeight]:
    """All of them, by the name that the parameter has in a plain model, in the module's order."""
    adapted = lora_layers(model)
    weights: dict[str, PlainWeight] = {}
    for name, module in model.named_modules():
        if isinstance(module, LoraLinear):
            continue
        plain = name.removesuffix(".base_layer")
        own: dict[str, tuple[torch.Size, Callable[[], Tensor]]] = {
            key: (parameter.shape, partial(full_tensor, parameter)) for key, parameter in module.named_parameters(recurse=False)
        }
        if isinstance(module, QuantisedLinear):
            own["weight"] = module.shape, module.weight
        if plain in adapted:
            shape, read = own["weight"]
            own["weight"] = shape, partial(_merged, read, adapted[plain])
        weights |= {f"{plain}.{key}" if plain else key: PlainWeight(*value) for key, value in own.items()}
    return weights


def _merged(read: Callable[[], Tensor], layer: LoraLinear) -> Tensor:
    return read().float() + layer.update()


def save(
    model: nn.Module, folder: Path, *, dtype: torch.dtype, config: SimpleVLAOFTConfig, companions: Mapping[str, bytes]
) -> None:
    """Write a model, adapters merged, so that it loads again here and with the published code.

    With sharded weights every rank must call this; the first one writes.

    Raises:
        OSError, SafetensorError: The first rank could not write (the disk is full, say); the other ranks are not told.
    """
    weights = plain_weights(model)
    tensors = _published_tensors(weights, dtype)
    try:
        _write(folder, weights, tensors, dtype=dtype, config=config, companions=companions)
    except (OSError, SafetensorError):
        for _ in tensors:  # the other ranks wait for this one's part of each
            pass
        raise


def save_adapters(
    model: nn.Module, folder: Path, *, base: str, config: SimpleVLAOFTConfig, companions: Mapping[str, bytes]
) -> None:
    """Write the adapters of a model alone, so that they load again here on their base, and with peft.

    With sharded weights every rank must call this; the first one writes.

    Args:
        model: Has adapters.
        folder: Where to.
        base: Name of the checkpoint whose weights are under them; see `CheckpointFiles.name`.
        config: Of the policy.
        companions: Files that travel along.

    Raises:
        OSError, SafetensorError: The first rank could not write; the other ranks are not told.
    """
    adapters = published_adapters(model)  # all that ranks do together is done here
    if not _writes():
        return
    folder.mkdir(parents=True, exist_ok=True)
    save_file(peft_tensors(adapters), folder / ADAPTER_WEIGHTS_FILE, metadata={"format": "pt"})
    _remove_weights(folder, but=())
    (folder / ADAPTER_CONFIG_FILE).write_bytes(json_bytes(peft_config(adapters, base=base)))
    _write_companions(folder, config, companions)


def _writes() -> bool:
    """Whether this is the rank that writes."""
    distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
    return not distributed or torch.distributed.get_rank() == 0


def _remove_weights(folder: Path, *, but: Collection[str]) -> None:
    """Remove the whole weights of an older checkpoint in the folder, which would be loaded."""
    for path in [folder / INDEX_FILE, *folder.glob("model*.safetensors")]:
        if path.name not in but:
            path.unlink(missing_ok=True)


def _write_companions(folder: Path, config: SimpleVLAOFTConfig, companions: Mapping[str, bytes]) -> None:
    (folder / "config.json").write_bytes(json_bytes(config_to_json(config)))
    (folder / STATISTICS_FILE).write_bytes(json_bytes(dict(config.norm_stats)))
    for name, content in companions.items():
        (folder / name).write_bytes(content)


def _write(
    folder: Path,
    weights: Mapping[str, PlainWeight],
    tensors: Iterator[tuple[str, Tensor]],
    *,
    dtype: torch.dtype,
    config: SimpleVLAOFTConfig,
    companions: Mapping[str, bytes],
) -> None:
    writes = _writes()
    if writes:
        folder.mkdir(parents=True, exist_ok=True)
    shards = _shards(weights, dtype)
    weight_map: dict[str, str] = {}
    for number, keys in enumerate(shards, start=1):
        name = "model.safetensors" if len(shards) == 1 else f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        weight_map |= dict.fromkeys(keys, name)
        shard = {}
        for key in keys:
            published, tensor = next(tensors)
            assert published == key
            if writes:
                shard[key] = tensor.to("cpu", copy=True).contiguous()
        if writes:
            save_file(shard, folder / name, metadata={"format": "pt"})
    if not writes:
        return
    _remove_weights(folder, but=set(weight_map.values()))
    for name in (ADAPTER_CONFIG_FILE, ADAPTER_WEIGHTS_FILE):
        (folder / name).unlink(missing_ok=True)
    if len(shards) > 1:
        total_size = sum(weight.shape.numel() for weight in weights.values()) * dtype.itemsize
        (folder / INDEX_FILE).write_bytes(json_bytes({"metadata": {"total_size": total_size}, "weight_map": weight_map}))
    _write_companions(folder, config, companions)


def _shards(weights: Mapping[str, PlainWeight], dtype: torch.dtype) -> list[list[str]]:
    """Published keys in the order of the module, cut where a file would exceed its size."""
    shards: list[list[str]] = [[]]
    filled = 0
    for key, piece in published_pieces(weights).items():
        size = weights[piece.parameter].shape.numel() * dtype.itemsize // piece.num_parts
        if filled and filled + size > _SHARD_BYTES:
            shards.append([])
            filled = 0
        shards[-1].append(key)
        filled += size
    return shards


def _published_tensors(weights: Mapping[str, PlainWeight], dtype: torch.dtype) -> Iterator[tuple[str, Tensor]]:
    """Published keys and tensors in the order of the module; each weight is made (and gathered from its shards) once."""
    made: tuple[str, Tensor] | None = None
    for key, piece in published_pieces(weights).items():
        if made is None or made[0] != piece.parameter:
            made = piece.parameter, weights[piece.parameter].read().to(dtype)
        yield key, piece.of(made[1])
