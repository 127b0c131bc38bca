"""The weights of a checkpoint as files: which ones they are, what they hold, and whether one save wrote them all.

A published tensor is read when it is wanted, straight onto its device. Headers alone are read before that.
"""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from vla_train.policy.simplevla_oft.json_files import read_json

INDEX_FILE = "model.safetensors.index.json"
_WHOLE_FILE = "model.safetensors"
_IGNORED_KEYS = re.compile(r".*\.rotary_emb\.inv_freq")
"""Constants that old checkpoints store and we compute."""
_VALUE_HEAD_KEYS = re.compile(r"value_head\..+")
"""RLinf's trainer has a value head beside the policy and saves it along. GRPO has no use for it, nor has playing."""


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a checkpoint's weights, by its index where it has one.

    Raises:
        ValueError: There are none, one is missing, or they are of two saves.
    """
    if (folder / INDEX_FILE).exists():
        weight_map = read_json(folder / INDEX_FILE).get("weight_map")
        if not isinstance(weight_map, dict):
            raise ValueError(f"{folder / INDEX_FILE} has no weight_map")
        names = sorted(set(weight_map.values()))
        foreign = [name for name in names if Path(name).name != name or not name.endswith(".safetensors")]
        if foreign:
            raise ValueError(f"{folder / INDEX_FILE} names {foreign[0]!r}, which is no safetensors file of this folder")
        files = [folder / name for name in names]
        missing = [path for path in files if not path.exists()]
        if missing:
            raise ValueError(f"{missing[0]} is missing, though {INDEX_FILE} names it")
        if _WHOLE_FILE not in names and (folder / _WHOLE_FILE).exists():
            raise ValueError(f"{folder} holds two saves, {_WHOLE_FILE} and the one that {INDEX_FILE} lists: remove one")
    else:
        files = sorted(folder.glob("*.safetensors"))
    if not files:
        pickles = sorted(path.name for suffix in ("bin", "pt", "pth", "ckpt") for path in folder.glob(f"*.{suffix}"))
        reason = f"only pickles, which can run code and are not read: {', '.join(pickles)}" if pickles else "no *.safetensors"
        raise ValueError(f"{folder} holds {reason}; convert the weights to safetensors")
    return files


def tensors(files: Sequence[Path], device: torch.device) -> Iterator[tuple[Path, str, Any, Any]]:
    """(file, key, shape, function that reads the tensor onto the device) of every stored tensor."""
    for path in files:
        try:
            with safe_open(path, framework="pt", device=str(device)) as file:
                for key in file.keys():  # noqa: SIM118 (not a mapping)
                    yield path, key, tuple(file.get_slice(key).get_shape()), lambda file=file, key=key: file.get_tensor(key)
        except SafetensorError as error:
            raise ValueError(f"{path} is damaged or no safetensors file (a pickle is never read): {error}") from None


def is_left_out(key: str) -> bool:
    """Whether a stored tensor is no part of the policy, and may be there all the same."""
    return bool(_IGNORED_KEYS.fullmatch(key) or _VALUE_HEAD_KEYS.fullmatch(key))


def value_head_keys(files: Sequence[Path]) -> list[str]:
    """Keys of a value head among the weights; there is one only where RLinf trained them.

    Raises:
        ValueError: A file is damaged.
    """
    return [key for path in files for key in _types(path) if _VALUE_HEAD_KEYS.fullmatch(key)]


def require_one_save(files: Sequence[Path]) -> None:
    """Refuse files of which some hold all weights in one type and others in another: halves of two saves.

    Raises:
        ValueError: The message names a file of each.
    """
    first: dict[str, Path] = {}
    for path in files:
        types = {dtype for key, dtype in _types(path).items() if not is_left_out(key)}
        if len(types) == 1:
            first.setdefault(types.pop(), path)
    if len(first) > 1:
        (one, path), (other, other_path) = list(first.items())[:2]
        raise ValueError(
            f"{path.parent} holds parts of two saves: {path.name} is all {one}, {other_path.name} all {other}; fetch it again"
        )


def _types(path: Path) -> dict[str, str]:
    """Stored type of each tensor of a file, by key."""
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            return {key: file.get_slice(key).get_dtype() for key in file.keys()}  # noqa: SIM118 (not a mapping)
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged or no safetensors file (a pickle is never read): {error}") from None
