"""Files that are there as a whole or not at all, however the process or the disk ends."""

import os
from contextlib import suppress
from pathlib import Path

WRITING = ".writing"
"""Ends the name of a file that is being written, or that a killed process left: nobody reads those."""


def replace_file(file: Path, content: bytes) -> None:
    """Give a file a new content, in one step.

    Raises:
        OSError: It cannot be written, and is as it was.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    writing = file.with_name(file.name + WRITING)
    try:
        with writing.open("wb") as opened:
            opened.write(content)
            opened.flush()
            os.fsync(opened.fileno())
        writing.replace(file)
    except BaseException:
        with suppress(OSError):
            writing.unlink(missing_ok=True)  # a full disk may need the room
        raise
