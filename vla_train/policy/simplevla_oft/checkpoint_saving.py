"""Writing checkpoints: a model as a whole in the published layout, adapters merged, or its adapters alone in peft's.

Each weight is made, merged and gathered from its shards once, and written from the host. Ranks take turns at the files, so that
each writes its share. What is written loads here (`checkpoint.py`) and with the published code, or peft.
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
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
    """Write a model, adapters merged, so that it loads again here and with the published code; file by file, as it is gathered.

    On several ranks all must call this; it is complete when all have returned.

    Raises:
        OSError, SafetensorError: This rank could not write (the disk is full, say); the other ranks are not told.
    """
    layout = _layout(plain_weights(model), dtype)
    files = _own_files(model, layout, dtype, copy=lambda tensor: tensor.to("cpu", copy=True))
    _write(folder, files, layout=layout, config=config, companions=companions)


def snapshot(
    model: nn.Module,
    copy: Callable[[Tensor], Tensor],
    *,
    dtype: torch.dtype,
    config: SimpleVLAOFTConfig,
    companions: Mapping[str, bytes],
) -> Callable[[Path], list[Path]]:
    """What `save` would write now, through `copy` into host memory; returns what writes this rank's part of it, as `save` does.

    On several ranks all must call this; what it returns, each may call when it likes.
    """
    layout = _layout(plain_weights(model), dtype)
    files = [*_own_files(model, layout, dtype, copy=copy)]
    return lambda folder: _write(folder, iter(files), layout=layout, config=config, companions=dict(companions))


def snapshot_adapters(
    model: nn.Module, *, base: str, config: SimpleVLAOFTConfig, companions: Mapping[str, bytes]
) -> Callable[[Path], list[Path]]:
    """Copies of a model's adapters alone; returns what writes them, so that they load again here on their base, and with peft.

    On several ranks all must call this; the first one then writes, the others do nothing.

    Args:
        model: Has adapters.
        base: Name of the checkpoint whose weights are under them; see `CheckpointFiles.name`.
        config: Of the policy.
        companions: Files that travel along.
    """
    adapters = published_adapters(model)
    tensors = peft_tensors(adapters)

    def write(folder: Path) -> list[Path]:
        if _rank_and_size()[0]:
            return []
        folder.mkdir(parents=True, exist_ok=True)
        save_file(tensors, folder / ADAPTER_WEIGHTS_FILE, metadata={"format": "pt"})
        _remove_weights(folder, but=())
        (folder / ADAPTER_CONFIG_FILE).write_bytes(json_bytes(peft_config(adapters, base=base)))
        _write_companions(folder, config, companions)
        return [folder / ADAPTER_WEIGHTS_FILE]

    return write


def _rank_and_size() -> tuple[int, int]:
    """This rank among those that write together."""
    distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
    return (torch.distributed.get_rank(), torch.distributed.get_world_size()) if distributed else (0, 1)


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
    files: Iterator[tuple[str, dict[str, Tensor]]],
    *,
    layout: "_Layout",
    config: SimpleVLAOFTConfig,
    companions: Mapping[str, bytes],
) -> list[Path]:
    """Write this rank's files of weights, and on the first rank all that comes with them; returns the former."""
    written = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, tensors in files:
            save_file(tensors, folder / name, metadata={"format": "pt"})
            written.append(folder / name)
    except (OSError, SafetensorError):
        for _ in files:  # the other ranks wait for this one's part of each weight
            pass
        raise
    if _rank_and_size()[0]:
        return written
    _remove_weights(folder, but=layout.files)
    for name in (ADAPTER_CONFIG_FILE, ADAPTER_WEIGHTS_FILE):
        (folder / name).unlink(missing_ok=True)
    if len(layout.files) > 1:
        weight_map = {key: name for name, keys in layout.files.items() for key in keys}
        (folder / INDEX_FILE).write_bytes(json_bytes({"metadata": {"total_size": layout.total_size}, "weight_map": weight_map}))
    _write_companions(folder, config, companions)
    return written


@dataclass(frozen=True, slots=True)
class _Layout:
    """Which file holds what."""

    files: Mapping[str, Sequence[str]]
    """Published keys by the file's name, all in the order of the module."""
    total_size: int
    """Bytes of all tensors."""


def _layout(weights: Mapping[str, PlainWeight], dtype: torch.dtype) -> _Layout:
    """A file ends where it would exceed its size, and there are enough of them for all ranks to have one."""
    total_size = sum(weight.shape.numel() for weight in weights.values()) * dtype.itemsize
    limit = min(_SHARD_BYTES, -(-total_size // _rank_and_size()[1]))
    shards: list[list[str]] = [[]]
    filled = 0
    for key, piece in published_pieces(weights).items():
        size = weights[piece.parameter].shape.numel() * dtype.itemsize // piece.num_parts
        if filled and filled + size > limit:
            shards.append([])
            filled = 0
        shards[-1].append(key)
        filled += size
    if len(shards) == 1:
        return _Layout({"model.safetensors": shards[0]}, total_size)
    names = (f"model-{number:05d}-of-{len(shards):05d}.safetensors" for number in range(1, len(shards) + 1))
    return _Layout(dict(zip(names, shards, strict=True)), total_size)


def _own_files(
    model: nn.Module, layout: _Layout, dtype: torch.dtype, *, copy: Callable[[Tensor], Tensor]
) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Name and content of this rank's files, one after the other; every rank goes to the end, having a part in all weights."""
    rank, size = _rank_and_size()
    tensors = _published_tensors(plain_weights(model), dtype)
    for number, (name, keys) in enumerate(layout.files.items()):
        content = {}
        for key in keys:
            published, tensor = next(tensors)
            assert published == key
            if number % size == rank:
                content[key] = copy(tensor).contiguous()
        if content:
            yield name, content


def _published_tensors(weights: Mapping[str, PlainWeight], dtype: torch.dtype) -> Iterator[tuple[str, Tensor]]:
    """Published keys and tensors in the order of the module; each weight is made (and gathered from its shards) once."""
    made: tuple[str, Tensor] | None = None
    for key, piece in published_pieces(weights).items():
        if made is None or made[0] != piece.parameter:
            made = piece.parameter, weights[piece.parameter].read().to(dtype)
        yield key, piece.of(made[1])
