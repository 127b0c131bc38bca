"""Checkpoints in the published layout: safetensors under the published names, `config.json`, and files that travel along.

Nothing from a checkpoint is executed: weights are read from safetensors only, everything else is JSON, or bytes that travel
along. Tensors go one by one onto the device; at no time is there a second copy of the model.
"""

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from vla_train.policy.checkpoint_name import checkpoint_folder, require_checkpoint
from vla_train.policy.simplevla_oft.config import SimpleVLAOFTConfig
from vla_train.policy.simplevla_oft.config_json import config_from_json, config_to_json
from vla_train.policy.simplevla_oft.continuous import refuse_continuous_config, refuse_continuous_files
from vla_train.policy.simplevla_oft.frozen import QuantisedLinear
from vla_train.policy.simplevla_oft.hub import fetch, hub_file_names
from vla_train.policy.simplevla_oft.lora import LoraLinear, full_tensor, lora_layers
from vla_train.safetensors_file import save_file

STATISTICS_FILE = "dataset_statistics.json"
_GENERATION_FILE = "generation_config.json"
_UNNORM_KEY = "unnorm_key"
_INDEX_FILE = "model.safetensors.index.json"
_WRITTEN_BY_US = {"config.json", STATISTICS_FILE, _INDEX_FILE}
_COMPANION_PATTERNS = ("*.json", "*.py", "tokenizer.model")
"""Kept as bytes. The Python files are the published classes, which the published loaders look for beside the weights."""
_SHARD_BYTES = 5_000_000_000
_IGNORED_KEYS = re.compile(r".*\.rotary_emb\.inv_freq")
"""Constants that old checkpoints store and we compute."""
_FUSED = {
    "self_attn.qkv_proj": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "mlp.gate_up_proj": ("mlp.gate_proj", "mlp.up_proj"),
}


@dataclass(frozen=True, slots=True)
class Piece:
    """Where a published tensor lives in a plain model: a whole parameter, or equal parts of its rows."""

    parameter: str
    part: int = 0
    num_parts: int = 1

    def of(self, tensor: Tensor) -> Tensor:
        """This piece of the parameter's tensor, as a view."""
        return tensor.chunk(self.num_parts, dim=0)[self.part]


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


def published_pieces(names: Iterable[str]) -> dict[str, Piece]:
    """Published key of every weight of a plain model, and where it lives."""
    pieces = {}
    for name in names:
        for fused, parts in _FUSED.items():
            if f".{fused}." in name:
                for index, part in enumerate(parts):
                    pieces[name.replace(fused, part)] = Piece(name, index, len(parts))
                break
        else:
            pieces[name] = Piece(name)
    return pieces


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckpointFiles:
    """A checkpoint, its weights not read yet."""

    config: SimpleVLAOFTConfig
    weights: tuple[Path, ...]
    """Safetensors files."""
    companions: dict[str, bytes]
    """Tokenizer, image settings and the like, by file name."""


def open_checkpoint(path_or_hub_id: str | Path) -> CheckpointFiles:
    """Read everything but the weights.

    Args:
        path_or_hub_id: `demo`, a folder, or `owner/name` on the Hugging Face hub.

    Raises:
        ValueError: There is no such checkpoint, a file is missing, damaged or a pickle, or it holds another model (continuous
            OpenVLA-OFT, say). The message names the file.
    """
    name = str(path_or_hub_id)
    check_checkpoint_files(name)
    folder = checkpoint_folder(name) or fetch(name, ["*.safetensors", *_COMPANION_PATTERNS])
    published = read_json(folder / "config.json")
    refuse_continuous_config(published, where=name)
    config = _with_statistics(config_from_json(published), folder)
    return CheckpointFiles(
        config=config,
        weights=tuple(_weight_files(folder)),
        companions={
            path.name: path.read_bytes()
            for pattern in _COMPANION_PATTERNS
            for path in sorted(folder.glob(pattern))
            if path.name not in _WRITTEN_BY_US
        },
    )


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


def _write(
    folder: Path,
    weights: Mapping[str, PlainWeight],
    tensors: Iterator[tuple[str, Tensor]],
    *,
    dtype: torch.dtype,
    config: SimpleVLAOFTConfig,
    companions: Mapping[str, bytes],
) -> None:
    writes = not (torch.distributed.is_available() and torch.distributed.is_initialized()) or torch.distributed.get_rank() == 0
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
    for path in [folder / _INDEX_FILE, *folder.glob("model*.safetensors")]:  # of an older checkpoint, which would be loaded
        if path.name not in weight_map.values():
            path.unlink(missing_ok=True)
    if len(shards) > 1:
        total_size = sum(weight.shape.numel() for weight in weights.values()) * dtype.itemsize
        (folder / _INDEX_FILE).write_bytes(json_bytes({"metadata": {"total_size": total_size}, "weight_map": weight_map}))
    (folder / "config.json").write_bytes(json_bytes(config_to_json(config)))
    (folder / STATISTICS_FILE).write_bytes(json_bytes(dict(config.norm_stats)))
    for name, content in companions.items():
        (folder / name).write_bytes(content)


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
        ValueError: There is no such folder, the hub has no such checkpoint, or it is one of continuous OpenVLA-OFT.
    """
    require_checkpoint(path_or_hub_id)
    folder = checkpoint_folder(path_or_hub_id)
    names = hub_file_names(path_or_hub_id) if folder is None else [path.name for path in folder.iterdir()]
    refuse_continuous_files(names, where=path_or_hub_id)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file of a checkpoint."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise ValueError(f"{path} is missing: not a checkpoint in the published layout") from None
    return json_object(content, name=str(path))


def json_object(content: bytes, *, name: str) -> dict[str, Any]:
    """A JSON object from the content of a file called `name`."""
    try:
        data = json.loads(content)
    except ValueError as error:
        raise ValueError(f"{name} is not valid JSON: {error}") from None
    if not isinstance(data, dict):
        raise ValueError(f"{name} holds a {type(data).__name__}, expected a JSON object")
    return data


def json_bytes(data: dict[str, Any]) -> bytes:
    """The content of a JSON file of a checkpoint."""
    return (json.dumps(data, indent=1) + "\n").encode()


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
def fill(model: nn.Module, files: Sequence[Path], *, device: torch.device) -> None:
    """Copy weights into a model, one tensor at a time, straight onto its device and into its dtype.

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
        target.copy_(read())
        if not target.isfinite().all():
            raise ValueError(f"{path}: {key} holds values that are not finite")
    missing = sorted(pieces.keys() - seen.keys())
    if missing:
        raise ValueError(
            f"{files[0].parent} lacks {len(missing)} weights: {', '.join(missing[:3])}{' ...' * (len(missing) > 3)}"
        )
