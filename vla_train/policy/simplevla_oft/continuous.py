"""Tells checkpoints of continuous OpenVLA-OFT from those of SimpleVLA-OFT, whose layout they share.

Continuous OpenVLA-OFT has an action head of its own, and may read proprioception and a wrist image, or the instruction inside
the vision towers (FiLM). These parts lie in files beside the usual weights, which load without them. But then the action
tokens were never trained, and what they play is noise.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any

_PARTS = {
    "action_head": "a continuous action head",
    "noisy_action_projector": "the input of a diffusion head",
    "proprio_projector": "a projector of proprioception",
    "vision_backbone": "a vision backbone with FiLM",
}
"""How names of files that hold a part begin (`action_head--150000_checkpoint.pt`), and what the part is."""
_PART_FILE = re.compile(rf"({'|'.join(_PARTS)})\b[^/]*\.(pt|pth|bin|safetensors)")
_SETTINGS = {
    "use_l1_regression": "a continuous action head",
    "use_diffusion": "a diffusion head",
    "use_proprio": "proprioception",
    "use_film": "FiLM",
}
"""Keys with which some checkpoints say in `config.json` what they need."""
_WANTED = "SimpleVLA-OFT is OpenVLA-OFT with discrete action tokens, one image and no proprioception: name a checkpoint of that"


def refuse_continuous_files(names: Iterable[str], *, where: str) -> None:
    """Refuse a checkpoint that has files of parts which SimpleVLA-OFT does not have.

    Args:
        names: Of the files of the checkpoint; those in subfolders do not count.
        where: Folder or hub id, for the message.

    Raises:
        ValueError: The message names the files and what they are.
    """
    parts = {name: _PARTS[match[1]] for name in sorted(names) if (match := _PART_FILE.fullmatch(name))}
    if parts:
        found = ", ".join(f"{name} ({part})" for name, part in parts.items())
        raise ValueError(f"{where} is a checkpoint of continuous OpenVLA-OFT, it has {found}; {_WANTED}")


def refuse_continuous_config(config: Mapping[str, Any], *, where: str) -> None:
    """Refuse a checkpoint whose `config.json` asks for parts or inputs that SimpleVLA-OFT does not have.

    Raises:
        ValueError: The message names the keys.
    """
    asked = [f"{key} ({part})" for key, part in _SETTINGS.items() if config.get(key)]
    if config.get("num_images_in_input") not in (None, 1):
        asked.append(f"num_images_in_input {config['num_images_in_input']} (several images)")
    if asked:
        raise ValueError(f"{where} is a checkpoint of another OpenVLA-OFT, config.json sets {', '.join(asked)}; {_WANTED}")
