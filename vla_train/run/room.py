"""How many checkpoints a run holds, and how much disk each takes at least: known before anything is loaded."""

import json
from pathlib import Path

import torch

from vla_train.config import PolicyConfig
from vla_train.config_file import RunConfig
from vla_train.policy.checkpoint_name import checkpoint_folder
from vla_train.policy.precision import chosen_dtype
from vla_train.policy.simplevla_oft.adapter_files import open_adapters

_STATE_BYTES = 12
"""Per trained weight: float32 weight and AdamW's two moments."""
_TRAINED = 0.95
"""Share of a file's weights that are certainly trained: a published checkpoint holds a few that no action needs."""
_ALWAYS_ADAPTED = "language_model.model.layers."
"""Where all matrices have adapters, whichever layers are asked for."""
_SHARES_ITS_A = ("k_proj.weight", "v_proj.weight", "up_proj.weight")
"""Layers whose adapter is trained with the A of another one; the policy's files hold it for each."""


def most_checkpoints(config: RunConfig) -> int:
    """How many there are at once: the newest, the one being written, and the best where the run evaluates."""
    return config.keep_checkpoints + 1 + (config.eval.every > 0)


def least_checkpoint_bytes(config: PolicyConfig) -> int:
    """Bytes of one checkpoint; 0 where the policy starts from random weights, or is not on this machine yet.

    A lower bound: adapters (LoRA) outside the language model, and pictures of episodes that are carried over, are not known
    here. Adapters that others are put on top of are part of the weights, and the policy is saved whole.
    """
    folder = None if config.checkpoint is None else checkpoint_folder(config.checkpoint)
    try:
        adapters = None if folder is None else open_adapters(folder)
    except ValueError:  # whoever builds the policy says whether it can read them
        adapters = None
    if adapters is not None:
        folder = checkpoint_folder(adapters.base)
    shapes = {} if folder is None else _shapes(folder)
    weights = _TRAINED * sum(shape.numel() for shape in shapes.values())
    in_dtype = chosen_dtype(config).itemsize
    if not config.lora_rank:
        return int(weights * (in_dtype + _STATE_BYTES))
    adapted = {key: shape for key, shape in shapes.items() if key.startswith(_ALWAYS_ADAPTED) and len(shape) == 2}
    published = config.lora_rank * sum(map(sum, adapted.values()))
    shared = config.lora_rank * sum(shape[1] for key, shape in adapted.items() if key.endswith(_SHARES_ITS_A))
    merged = adapters is not None and adapters.rank != config.lora_rank
    return int((weights if merged else published) * in_dtype + (published - shared) * _STATE_BYTES)


def _shapes(folder: Path) -> dict[str, torch.Size]:
    """Shapes in safetensors files, by their headers; none of a damaged one, which loading will refuse."""
    shapes: dict[str, torch.Size] = {}
    for file in folder.glob("*.safetensors"):
        try:
            with file.open("rb") as opened:
                header = json.loads(opened.read(int.from_bytes(opened.read(8), "little")))
            shapes |= {name: torch.Size(entry["shape"]) for name, entry in header.items() if name != "__metadata__"}
        except (OSError, ValueError, KeyError, TypeError, AttributeError, MemoryError, OverflowError):
            continue
    return shapes
