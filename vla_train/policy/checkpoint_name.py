"""What names a checkpoint: `demo`, a folder here, or `owner/name` on the Hugging Face hub.

A mistyped folder is noticed here, at once, and not after the workers were started, as something that the hub lacks.
"""

import re
from pathlib import Path

from vla_train.config import DEMO_CHECKPOINT

_DEMO_FOLDER = Path(__file__).parents[1] / "demo"


def checkpoint_folder(name: str) -> Path | None:
    """The folder here that a name stands for; None where it can only be one of the hub."""
    folder = _DEMO_FOLDER if name == DEMO_CHECKPOINT else Path(name)
    return folder if folder.is_dir() else None


def require_checkpoint(name: str) -> None:
    """Refuse a name that stands for no folder here and cannot be one of the hub.

    Raises:
        ValueError: There is no such folder, and the name is not of the form `owner/name`, or its first half is a folder
            that holds runs.
    """
    if checkpoint_folder(name) is not None:
        return
    folder = Path(name)
    if folder.exists():
        raise ValueError(f"{name} is a file: expected the folder of a checkpoint, or owner/name on the Hugging Face hub")
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", name) or any(folder.parent.glob("*/checkpoints")):
        raise ValueError(
            f"no checkpoint at {name}: expected a folder, {DEMO_CHECKPOINT}, or owner/name on the Hugging Face hub"
        )
