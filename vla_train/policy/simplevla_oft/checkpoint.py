"""Reading checkpoints in the published layout: safetensors under published names, `config.json`, and files that travel along.

A folder of adapters (`adapter_files.py`) is a checkpoint too: its weights are those of the base that it names, and the files
that travel along are its own where it has them.

Nothing from a checkpoint is executed: weights are read from safetensors only, everything else is JSON, or bytes that travel
along. Tensors go one by one onto the device; at no time is there a second copy of the model.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import nn

from vla_train.config import DEMO_CHECKPOINT
from vla_train.policy.checkpoint_name import checkpoint_folder, require_checkpoint
from vla_train.policy.simplevla_oft.adapter_files import (
    ADAPTER_CONFIG_FILE,
    ADAPTER_WEIGHTS_FILE,
    Adapter,
    AdapterFiles,
    open_adapters,
)
from vla_train.policy.simplevla_oft.companion import (
    Companion,
    require_same_model,
    supplied_files,
    with_statistics_of,
)
from vla_train.policy.simplevla_oft.config import SimpleVLAOFTConfig
from vla_train.policy.simplevla_oft.config_json import config_from_json
from vla_train.policy.simplevla_oft.continuous import refuse_continuous_config, refuse_continuous_files
from vla_train.policy.simplevla_oft.hub import fetch, hub_file_names
from vla_train.policy.simplevla_oft.json_files import read_json
from vla_train.policy.simplevla_oft.nested_adapters import NestedAdapters, adapters_beside, require_other_than_nested
from vla_train.policy.simplevla_oft.published_names import published_pieces
from vla_train.policy.simplevla_oft.trainer_saves import names_of_saves, refuse_trainer_save
from vla_train.policy.simplevla_oft.weight_files import (
    INDEX_FILE,
    is_left_out,
    require_one_save,
    tensors,
    value_head_keys,
    weight_files,
)

_log = logging.getLogger(__name__)
STATISTICS_FILE = "dataset_statistics.json"
_GENERATION_FILE = "generation_config.json"
_UNNORM_KEY = "unnorm_key"
_WRITTEN_BY_US = {"config.json", STATISTICS_FILE, INDEX_FILE, ADAPTER_CONFIG_FILE}
_COMPANION_PATTERNS = ("*.json", "*.py", "tokenizer.model")
"""Kept as bytes. The Python files are the published classes, which the published loaders look for beside the weights."""
_ALL_BUT_WEIGHTS = (*_COMPANION_PATTERNS, f"*{ADAPTER_WEIGHTS_FILE}")
_ALL_PATTERNS = (*_ALL_BUT_WEIGHTS, "*.safetensors")


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckpointFiles:
    """A checkpoint, its weights not read yet."""

    config: SimpleVLAOFTConfig
    weights: Callable[[], tuple[Path, ...]]
    """Safetensors files; those on the hub are fetched when this is called, after all else was looked at."""
    companions: dict[str, bytes]
    """Tokenizer, image settings and the like, by file name."""
    name: str | None = None
    """What the weights' files can be found by from anywhere on this machine; None where there are none."""
    adapters: AdapterFiles | None = None
    """What is to be added to the weights."""
    has_statistics: bool
    """Whether it has action statistics in a file of their own. Those in `config.json` alone are often of its ancestors."""
    notes: tuple[str, ...] = ()
    """What was settled when it was opened, for the log."""


def open_checkpoint(
    path_or_hub_id: str | Path, *, companion: str | None = None, nested: NestedAdapters = "auto"
) -> CheckpointFiles:
    """Read everything but the weights, which are not fetched either.

    Args:
        path_or_hub_id: `demo`, a folder, or `owner/name` on the Hugging Face hub; any of them may hold adapters.
        companion: The same; supplies files and statistics that the checkpoint lacks.
        nested: Whether whole weights hold the adapters of a `lora_adapter/` beside them already, or are to get them.

    Raises:
        ValueError: There is no such checkpoint, a file is missing, damaged or a pickle, or it holds another model (continuous
            OpenVLA-OFT, say), or adapters of a base that is not here. The message names the file.
    """
    name = str(path_or_hub_id)
    files = _open(name, nested=nested)
    if companion is not None:
        files = _with_companion(files, _open_companion(companion), name=name)
    if not files.config.norm_stats:
        raise ValueError(
            f"{name} has no action statistics: {STATISTICS_FILE} is missing, and config.json has no norm_stats; name a "
            "checkpoint that has them (the one that it was trained from, say) with policy.companion"
        )
    return files


def _open(name: str, *, nested: NestedAdapters) -> CheckpointFiles:
    check_checkpoint_files(name)
    folder = _folder_here(name)
    adapters = open_adapters(folder)
    if adapters is not None:
        _check_base(adapters)  # those of a hub id were not seen before
        # What its record names is the weights as they are, whatever else lies beside them.
        return _with_adapters(_open(adapters.base, nested="merged"), adapters, name=name)
    on_hub = checkpoint_folder(name) is None
    nested_adapters, note = adapters_beside(folder, name=name, asked=nested)
    return CheckpointFiles(
        config=_with_statistics(_read_config(folder, name=name), folder),
        weights=partial(_fetched_weights, name) if on_hub else partial(tuple, weight_files(folder)),
        companions=_companions(folder),
        name=name if on_hub or name == DEMO_CHECKPOINT else str(folder.resolve()),
        adapters=nested_adapters,
        has_statistics=_has_statistics(folder),
        notes=() if note is None else (note,),
    )


def _fetched_weights(hub_id: str) -> tuple[Path, ...]:
    return tuple(weight_files(fetch(hub_id, _ALL_PATTERNS)))


def check_companion(name: str) -> None:
    """Refuse what can supply nothing, by its files' names: nothing is fetched or read.

    Raises:
        ValueError: There is no such folder, the hub has no such checkpoint, or it is none.
    """
    require_checkpoint(name)
    if "config.json" not in _file_names(name):
        raise ValueError(f"policy.companion {name} has no config.json: name a checkpoint in the published layout")


def _open_companion(name: str) -> Companion:
    """What a checkpoint can supply; its weights need not be there, and are not fetched."""
    check_companion(name)
    folder = checkpoint_folder(name) or fetch(name, _COMPANION_PATTERNS)
    try:
        config = _with_statistics(config_from_json(read_json(folder / "config.json")), folder)
    except ValueError as error:
        raise ValueError(f"policy.companion {name}: {error}") from None
    return Companion(name=name, config=config, files=_companions(folder))


def _with_companion(files: CheckpointFiles, companion: Companion, *, name: str) -> CheckpointFiles:
    require_same_model(files.config, companion, name=name)
    supplied = supplied_files(files.companions, companion)
    config, names = files.config, sorted(supplied)
    if not files.has_statistics:
        config, names = with_statistics_of(config, companion), [STATISTICS_FILE, *names]
    note = f"{companion.name} supplies {', '.join(names) if names else 'nothing: nothing is missing'} of {name}"
    return replace(files, config=config, companions=files.companions | supplied, notes=(*files.notes, note))


def _file_names(name: str) -> list[str]:
    folder = checkpoint_folder(name)
    return hub_file_names(name) if folder is None else [path.name for path in folder.iterdir()]


def _folder_here(name: str) -> Path:
    return checkpoint_folder(name) or fetch(name, _ALL_BUT_WEIGHTS)


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
        has_statistics=base.has_statistics or _has_statistics(folder),
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
    if (base := checkpoint_folder(adapters.base)) is not None:
        require_other_than_nested(adapters, base)


def is_here(name: str) -> bool:
    """Whether all of a checkpoint that exists, its adapters' base included, is on this machine by its name."""
    folder = checkpoint_folder(name)
    adapters = None if folder is None else open_adapters(folder)
    return folder is not None and (adapters is None or checkpoint_folder(adapters.base) is not None)


def _has_statistics(folder: Path) -> bool:
    return (folder / STATISTICS_FILE).exists() and bool(read_json(folder / STATISTICS_FILE))


def _with_statistics(config: SimpleVLAOFTConfig, folder: Path) -> SimpleVLAOFTConfig:
    """With the action statistics of the folder, and the name of those that the checkpoint is to be played with.

    Published files have that name, where they have it at all, in `config.json`, `generation_config.json` or among the
    statistics; the first of these counts.
    """
    norm_stats = dict(config.norm_stats)
    if (folder / STATISTICS_FILE).exists():
        norm_stats = read_json(folder / STATISTICS_FILE)
    generation = read_json(folder / _GENERATION_FILE) if (folder / _GENERATION_FILE).exists() else {}
    named = (config.unnorm_key, generation.get(_UNNORM_KEY), norm_stats.pop(_UNNORM_KEY, None))
    unnorm_key = next((name for name in named if name is not None), None)
    if not isinstance(unnorm_key, str | None):
        raise ValueError(f"{folder}: {_UNNORM_KEY} must name a dataset, got {unnorm_key!r}")
    return replace(config, norm_stats=norm_stats, unnorm_key=unnorm_key)


def check_checkpoint_files(path_or_hub_id: str) -> None:
    """Refuse what is no checkpoint, or another trainer's or model's, by its files' names: nothing is fetched or read.

    Raises:
        ValueError: There is no such folder, the hub has no such checkpoint, or it is one of continuous OpenVLA-OFT or a save
            of RLinf's trainer; or this is so of the base of a folder of adapters.
    """
    require_checkpoint(path_or_hub_id)
    folder, names = checkpoint_folder(path_or_hub_id), _file_names(path_or_hub_id)
    refuse_continuous_files(names, where=path_or_hub_id)
    refuse_trainer_save([*names, *(() if folder is None else names_of_saves(folder))], where=path_or_hub_id)
    adapters = None if folder is None else open_adapters(folder)
    if adapters is not None:
        _check_base(adapters)
        check_checkpoint_files(adapters.base)


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
    require_one_save(files)
    if head := value_head_keys(files):
        _log.info("%s: the value head (%d tensors) is left out: only PPO needs one", files[0].parent, len(head))
    parameters = dict(model.named_parameters())
    pieces = published_pieces(parameters)
    seen: dict[str, Path] = {}
    for path, key, shape, read in tensors(files, device):
        if key not in pieces:
            if is_left_out(key):
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
