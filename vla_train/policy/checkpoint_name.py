"""What names a checkpoint: a folder here, or `owner/name` on the Hugging Face hub.

A mistyped folder is noticed here, at once, and not after the env groups were started, as something that the hub lacks.
"""

import re
from pathlib import Path


def require_checkpoint(name: str) -> None:
    """Refuse a name that can only be meant as a folder, where there is none.

    Raises:
        ValueError: There is no such folder, and the name is none for the hub, or stands beside runs.
    """
    folder = Path(name)
    if folder.exists():
        return
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", name) or any(folder.parent.glob("*/checkpoints")):
        raise ValueError(f"no checkpoint at {name}: expected a folder, or owner/name on the Hugging Face hub")
