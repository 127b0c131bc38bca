"""One process at a time writes in a folder: a second one would delete what the first is writing."""

import fcntl
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path


def lock_run(run: Path, *, activity: str = "trains") -> Callable[[], None]:
    """Claim the folder of a run, which is made where there is none, until the process ends or the result is called.

    File systems that cannot lock are trusted.

    Args:
        run: The folder.
        activity: What another process that has it does there, for the message.

    Raises:
        ValueError: Another process has it, or the folder cannot be made.
    """
    try:
        run.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(run, os.O_RDONLY)
    except OSError as error:
        raise ValueError(f"{run} cannot be written to: {error.strerror or error}; choose another output") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise ValueError(f"another process {activity} in {run}: wait until it has ended, or choose another output") from None
    except OSError:
        pass
    return partial(os.close, descriptor)
