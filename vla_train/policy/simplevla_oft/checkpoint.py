"""Checkpoints in the published layout: safetensors under the published names, `config.json`, and files that travel along.

A folder of adapters (`adapter_files.py`) is a checkpoint too: its weights are those of the base that it names, and the files
that travel along are its own where it has them.

Nothing from a checkpoint is executed: weights are read from safetensors only, everything else is JSON, or bytes that travel
along. Tensors go one by one onto the device; at no time is there a second copy of the model.
"""

import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from vla_train.config import DEMO_CHECKPOINT
from vla_train.policy.checkpoint_name import checkpoint_folder, require_checkpoint
from vla_train.policy.simplevla_oft.adapter_files import (
    ADAPTER_CONFIG_FILE,
    ADAPTER_WEIGHTS_FILE,
    Adapter,
    AdapterFiles,
    open_adapters,
    peft_config,
    peft_tensors,
    published_adapters,
)
from vla_train.policy.simplevla_oft.config import SimpleVLAOFTConfig
from vla_train.policy.simplevla_oft.config_json import config_from_json, config_to_json
from vla_train.policy.simplevla_oft.continuous import refuse_continuous_config, refuse_continuous_files
from vla_train.policy.simplevla_oft.frozen import QuantisedLinear
from vla_train.policy.simplevla_oft.hub import fetch, hub_file_names
from vla_train.policy.simplevla_oft.json_files import json_bytes, read_json
from vla_train.policy.simplevla_oft.lora import LoraLinear, full_tensor, lora_layers
from vla_train.policy.simplevla_oft.published_names import published_pieces
from vla_train.safetensors_file import save_file

STATISTICS_FILE = "dataset_statistics.json"
_GENERATION_FILE = "generation_config.json"
_UNNORM_KEY = "unnorm_key"
_INDEX_FILE = "model.safetensors.index.json"
_WRITTEN_BY_US = {"config.json", STATISTICS_FILE, _INDEX_FILE, ADAPTER_CONFIG_FILE}
_COMPANION_PATTERNS = ("*.json", "*.py", "tokenizer.model")
"""Kept as bytes. The Python files are the published classes, which the published loaders look for beside the weights."""
_SHARD_BYTES = 5_000_000_000
_IGNORED_KEYS = re.compile(r".*\.rotary_emb\.inv_freq")
"""Constants that old checkpoints store and we compute."""


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


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckpointFiles:
    """A checkpoint, its weights not read yet."""

    config: SimpleVLAOFTConfig
    weights: tuple[Path, ...]
    """Safetensors files."""
    companions: dict[str, bytes]
    """Tokenizer, image settings and the like, by file name."""
    name: str | None = None
    """What the weights' files can be found by from anywhere on this machine; None where there are none."""
    adapters: AdapterFiles | None = None
    """What is to be added to the weights."""


def open_checkpoint(path_or_hub_id: str | Path) -> CheckpointFiles:
    """Read everything but the weights.

    Args:
        path_or_hub_id: `demo`, a folder, or `owner/name` on the Hugging Face hub; any of them may hold adapters.

    Raises:
        ValueError: There is no such checkpoint, a file is missing, damaged or a pickle, or it holds another model (continuous
            OpenVLA-OFT, say), or adapters of a base that is not here. The message names the file.
    """
    name = str(path_or_hub_id)
    check_checkpoint_files(name)
    folder = _folder_here(name)
    adapters = open_adapters(folder)
    if adapters is not None:
        _check_base(adapters)  # those of a hub id were not seen before
        return _with_adapters(open_checkpoint(adapters.base), adapters, name=name)
    return CheckpointFiles(
        config=_with_statistics(_read_config(folder, name=name), folder),
        weights=tuple(_weight_files(folder)),
        companions=_companions(folder),
        name=name if name == DEMO_CHECKPOINT or checkpoint_folder(name) is None else str(folder.resolve()),
    )


def _file_names(name: str) -> list[str]:
    folder = checkpoint_folder(name)
    return hub_file_names(name) if folder is None else [path.name for path in folder.iterdir()]


def _folder_here(name: str) -> Path:
    return checkpoint_folder(name) or fetch(name, ["*.safetensors", *_COMPANION_PATTERNS])


def _read_config(folder: Path, *, name: str) -> SimpleVLAOFTConfig:
    published = read_json(folder / "config.json")
    refuse_continuous_config(published, where=name)
    return config_from_json(published)


def _companions(folder: Path) -> dict[str, bytes]:
    return {
        path.name: path.read_bytes()
        for pattern in _COMPANION_PATTERNS
        for path in sorted(folder.glob(pattern))
        if path.name not in _WRITTEN_BY_US
    }


def _with_adapters(base: CheckpointFiles, adapters: AdapterFiles, *, name: str) -> CheckpointFiles:
    """The base's files, those that the adapters' folder has too taken from there."""
    folder = adapters.folder
    if (folder / "config.json").exists():
        config = _read_config(folder, name=name)
        if not config.norm_stats:
            config = replace(config, norm_stats=base.config.norm_stats, unnorm_key=config.unnorm_key or base.config.unnorm_key)
    elif (folder / STATISTICS_FILE).exists():
        config = replace(base.config, unnorm_key=None)
    else:
        config = base.config
    return replace(
        base,
        config=_with_statistics(config, folder),
        companions=base.companions | _companions(folder),
        adapters=adapters,
    )


def _check_base(adapters: AdapterFiles) -> None:
    """Refuse adapters whose base is no plain checkpoint; nothing is fetched.

    Raises:
        ValueError: The message names both.
    """
    try:
        require_checkpoint(adapters.base)
    except ValueError:
        raise ValueError(
            f"{adapters.folder} holds adapters of {adapters.base}, which is no checkpoint here: put that back, or correct "
            f"base_model_name_or_path of {ADAPTER_CONFIG_FILE} in a copy of the folder"
        ) from None
    if ADAPTER_CONFIG_FILE in _file_names(adapters.base):
        raise ValueError(
            f"{adapters.folder} holds adapters of {adapters.base}, which holds adapters itself: export that, and name the "
            f"export as base_model_name_or_path of {ADAPTER_CONFIG_FILE}"
        )


def is_here(name: str) -> bool:
    """Whether all of a checkpoint that exists, its adapters' base included, is on this machine by its name."""
    folder = checkpoint_folder(name)
    adapters = None if folder is None else open_adapters(folder)
    return folder is not None and (adapters is None or checkpoint_folder(adapters.base) is not None)


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
    for path in [folder / _INDEX_FILE, *folder.glob("model*.safetensors")]:
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
        (folder / _INDEX_FILE).write_bytes(json_bytes({"metadata": {"total_size": total_size}, "weight_map": weight_map}))
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


def _with_statistics(config: SimpleVLAOFTConfig, folder: Path) -> SimpleVLAOFTConfig:
    """With the action statistics of the folder, and the name of those that the checkpoint is to be played with.

    Published files have that name, where they have it at all, in `config.json`, `generation_config.json` or among the
    statistics; the first of these counts.
    """
    norm_stats = dict(config.norm_stats)
    if (folder / STATISTICS_FILE).exists():
        norm_stats = read_json(folder / STATISTICS_FILE)
    elif not norm_stats:
        raise ValueError(f"{folder / STATISTICS_FILE} is missing, and config.json has no norm_stats: no action statistics")
    generation = read_json(folder / _GENERATION_FILE) if (folder / _GENERATION_FILE).exists() else {}
    named = (config.unnorm_key, generation.get(_UNNORM_KEY), norm_stats.pop(_UNNORM_KEY, None))
    unnorm_key = next((name for name in named if name is not None), None)
    if not isinstance(unnorm_key, str | None):
        raise ValueError(f"{folder}: {_UNNORM_KEY} must name a dataset, got {unnorm_key!r}")
    return replace(config, norm_stats=norm_stats, unnorm_key=unnorm_key)


def check_checkpoint_files(path_or_hub_id: str) -> None:
    """Refuse what is no checkpoint, or one of continuous OpenVLA-OFT, by its files' names: nothing is fetched or read.

    Raises:
        ValueError: There is no such folder, the hub has no such checkpoint, or it is one of continuous OpenVLA-OFT; or this
            is so of the base of a folder of adapters.
    """
    require_checkpoint(path_or_hub_id)
    folder = checkpoint_folder(path_or_hub_id)
    refuse_continuous_files(_file_names(path_or_hub_id), where=path_or_hub_id)
    adapters = None if folder is None else open_adapters(folder)
    if adapters is not None:
        _check_base(adapters)
        check_checkpoint_files(adapters.base)


def _weight_files(folder: Path) -> list[Path]:
    if (folder / _INDEX_FILE).exists():
        weight_map = read_json(folder / _INDEX_FILE).get("weight_map")
        if not isinstance(weight_map, dict):
            raise ValueError(f"{folder / _INDEX_FILE} has no weight_map")
        names = sorted(set(weight_map.values()))
        foreign = [name for name in names if Path(name).name != name or not name.endswith(".safetensors")]
        if foreign:
            raise ValueError(f"{folder / _INDEX_FILE} names {foreign[0]!r}, which is no safetensors file of this folder")
        files = [folder / name for name in names]
    else:
        files = sorted(folder.glob("*.safetensors"))
    missing = [path for path in files if not path.exists()]
    if missing:
        raise ValueError(f"{missing[0]} is missing, though {_INDEX_FILE} names it")
    if not files:
        pickles = sorted(path.name for suffix in ("bin", "pt", "pth", "ckpt") for path in folder.glob(f"*.{suffix}"))
        reason = f"only pickles, which can run code and are not read: {', '.join(pickles)}" if pickles else "no *.safetensors"
        raise ValueError(f"{folder} holds {reason}; convert the weights to safetensors")
    return files


def _tensors(files: Sequence[Path], device: torch.device) -> Iterator[tuple[Path, str, Any, Any]]:
    """(file, key, shape, function that reads the tensor onto the device) of every stored tensor."""
    for path in files:
        try:
            with safe_open(path, framework="pt", device=str(device)) as file:
                for key in file.keys():  # noqa: SIM118 (not a mapping)
                    yield path, key, tuple(file.get_slice(key).get_shape()), lambda file=file, key=key: file.get_tensor(key)
        except SafetensorError as error:
            raise ValueError(f"{path} is damaged or no safetensors file (a pickle is never read): {error}") from None


@torch.no_grad()
def fill(model: nn.Module, files: Sequence[Path], *, device: torch.device, adapters: Mapping[str, Adapter]) -> None:
    """Copy weights into a model, one tensor at a time, straight onto its device and into its dtype.

    Args:
        model: A plain one.
        files: Safetensors files.
        device: The model's.
        adapters: What is added, in float32, to some of the weights, by published layer.

    Raises:
        ValueError: Weights are missing, extra, mis-shaped or not finite. The message names the file or key.
    """
    parameters = dict(model.named_parameters())
    pieces = published_pieces(parameters)
    seen: dict[str, Path] = {}
    for path, key, shape, read in _tensors(files, device):
        if key not in pieces:
            if _IGNORED_KEYS.fullmatch(key):
                continue
            raise ValueError(f"{path} holds {key}, which this model does not have")
        if key in seen:
            raise ValueError(f"{key} is in both {seen[key]} and {path}")
        seen[key] = path
        target = pieces[key].of(parameters[pieces[key].parameter])
        if shape != tuple(target.shape):
            raise ValueError(f"{path}: {key} has shape {shape}, config.json asks for {tuple(target.shape)}")
        adapter = adapters.get(key.removesuffix(".weight"))
        target.copy_(read() if adapter is None else read().float() + adapter.update(device))
        if not target.isfinite().all():
            raise ValueError(f"{path}: {key} holds values that are not finite")
    missing = sorted(pieces.keys() - seen.keys())
    if missing:
        raise ValueError(
            f"{files[0].parent} lacks {len(missing)} weights: {', '.join(missing[:3])}{' ...' * (len(missing) > 3)}"
        )
