"""How much disk a run's checkpoints take at least, known before anything is loaded: from the files that it starts from."""

import json
from pathlib import Path

import torch

from vla_train.config import PolicyConfig
from vla_train.policy.checkpoint_name import checkpoint_folder
from vla_train.policy.precision import chosen_dtype

_STATE_BYTES = 12
"""Per trained weight: float32 weight and AdamW's two moments."""
_TRAINED = 0.95
"""Share of a file's weights that are certainly trained: a published checkpoint holds a few that no action needs."""


def least_checkpoint_bytes(config: PolicyConfig) -> int:
    """Bytes of one checkpoint; 0 where the policy starts from random weights, or is not on this machine yet.

    A lower bound: adapters (LoRA) and pictures of episodes that are carried over are not known here.
    """
    folder = None if config.checkpoint is None else checkpoint_folder(config.checkpoint)
    weights = 0 if folder is None else sum(map(_num_weights, folder.glob("*.safetensors")))
    return int(_TRAINED * weights * (chosen_dtype(config).itemsize + (0 if config.lora_rank else _STATE_BYTES)))


def _num_weights(file: Path) -> int:
    """Numbers in a safetensors file, by its header; 0 for a damaged one, which loading will refuse."""
    try:
        with file.open("rb") as opened:
            header = json.loads(opened.read(int.from_bytes(opened.read(8), "little")))
        shapes = [torch.Size(entry["shape"]) for name, entry in header.items() if name != "__metadata__"]
    except (OSError, ValueError, KeyError, TypeError, MemoryError, OverflowError):
        return 0
    return sum(shape.numel() for shape in shapes)
