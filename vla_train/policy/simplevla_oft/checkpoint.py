"""Reading checkpoints in the published layout: safetensors under published names, `config.json`, and files that travel along.

A folder of adapters (`adapter_files.py`) is a checkpoint too: its weights are those of the base that it names, and the files
that travel along are its own where it has them.

Nothing from a checkpoint is executed: weights are read from safetensors only, everything else is JSON, or bytes that travel
along. Tensors go one by one onto the device; at no time is there a second copy of the model.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from vla_train.config import DEMO_CHECKPOINT
from vla_train.policy.checkpoint_name import checkpoint_folder, require_checkpoint
from vla_train.policy.simplevla_oft.adapter_files import (
    ADAPTER_CONFIG_FILE,
    Adapter,
    AdapterFiles,
    open_adapters,
)
from vla_train.policy.simplevla_oft.config import SimpleVLAOFTConfig
from vla_train.policy.simplevla_oft.config_json import config_from_json
from vla_train.policy.simplevla_oft.continuous import refuse_continuous_config, refuse_continuous_files
from vla_train.policy.simplevla_oft.hub import fetch, hub_file_names
from vla_train.policy.simplevla_oft.json_files import read_json
from vla_train.policy.simplevla_oft.published_names import published_pieces

STATISTICS_FILE = "dataset_statistics.json"
_GENERATION_FILE = "generation_config.json"
_UNNORM_KEY = "unnorm_key"
INDEX_FILE = "model.safetensors.index.json"
_WRITTEN_BY_US = {"config.json", STATISTICS_FILE, INDEX_FILE, ADAPTER_CONFIG_FILE}
_COMPANION_PATTERNS = ("*.json", "*.py", "tokenizer.model")
"""Kept as bytes. The Python files are the published classes, which the published loaders look for beside the weights."""
_IGNORED_KEYS = re.compile(r".*\.rotary_emb\.inv_freq")
"""Constants that old checkpoints store and we compute."""


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
    if (folder / INDEX_FILE).exists():
        weight_map = read_json(folder / INDEX_FILE).get("weight_map")
        if not isinstance(weight_map, dict):
            raise ValueError(f"{folder / INDEX_FILE} has no weight_map")
        names = sorted(set(weight_map.values()))
        foreign = [name for name in names if Path(name).name != name or not name.endswith(".safetensors")]
        if foreign:
            raise ValueError(f"{folder / INDEX_FILE} names {foreign[0]!r}, which is no safetensors file of this folder")
        files = [folder / name for name in names]
    else:
        files = sorted(folder.glob("*.safetensors"))
    missing = [path for path in files if not path.exists()]
    if missing:
        raise ValueError(f"{missing[0]} is missing, though {INDEX_FILE} names it")
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
