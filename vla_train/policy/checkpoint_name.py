"""What names a checkpoint: a folder here, or `owner/name` on the Hugging Face hub.

A mistyped folder is noticed here, at once, and not after the workers were started, as something that the hub lacks.
"""

import re
from pathlib import Path


def require_checkpoint(name: str) -> None:
    """Refuse a name that is neither a folder here nor can be one of the hub.

    Raises:
        ValueError: There is no such folder, and the name is not of the form `owner/name`, or its first half is a folder
            that holds runs.
    """
    folder = Path(name)
    if folder.is_dir():
        return
    if folder.exists():
        raise ValueError(f"{name} is a file: expected the folder of a checkpoint, or owner/name on the Hugging Face hub")
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", name) or any(folder.parent.glob("*/checkpoints")):
        raise ValueError(f"no checkpoint at {name}: expected a folder, or owner/name on the Hugging Face hub")
