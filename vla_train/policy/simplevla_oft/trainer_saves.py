"""Tells the saves of RLinf's trainer, which nothing but RLinf reads, from checkpoints in the published layout.

    checkpoints/global_step_N/actor/model_state_dict/full_weights.pt    a pickle
    checkpoints/global_step_N/actor/dcp_checkpoint/__0_0.distcp ...     PyTorch's distributed checkpoint

Users name any of these folders. RLinf has a converter to the published layout.
"""

import re
from collections.abc import Iterable
from pathlib import Path

_SAVE = re.compile(r"(.*/)?(full_weights\.pt|[^/]*\.distcp)")
_DEPTH = 3
"""How far below `global_step_N` these files lie."""
_CONVERTER = "python -m rlinf.utils.ckpt_convertor.fsdp_convertor.convert_pt_to_hf"


def refuse_trainer_save(names: Iterable[str], *, where: str) -> None:
    """Refuse what holds a save of RLinf's trainer and no weights in the published layout.

    Args:
        names: Paths of its files, relative to it.
        where: Folder or hub id, for the message.

    Raises:
        ValueError: The message names the file, and the converter.
    """
    found = sorted(names)
    saves = [name for name in found if _SAVE.fullmatch(name)]
    if saves and not any("/" not in name and name.endswith(".safetensors") for name in found):
        raise ValueError(
            f"{where} holds a trainer's own save ({saves[0]}), as RLinf writes them, which is not read here: convert it by "
            f"RLinf's `{_CONVERTER}`, and name the folder that it writes"
        )


def names_of_saves(folder: Path) -> list[str]:
    """Paths of the files of such a save in a folder here, relative to it."""
    patterns = ["/".join(["*"] * depth + [name]) for depth in range(_DEPTH) for name in ("full_weights.pt", "*.distcp")]
    return [path.relative_to(folder).as_posix() for pattern in patterns for path in folder.glob(pattern)]
