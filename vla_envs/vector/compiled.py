"""Functions compiled to native code that runs without the GIL; kept on disk for the next process where that is possible.

Invariant: what is kept is what all sources say now. A compiled function holds those that it calls, and numba by itself looks
at no other file than the function's: after an update it would go on with old callees.

Where numba may write neither beside the source nor in the user's home, everything works, but each process compiles anew.
"""

import hashlib
import logging
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from numba import njit

logger = logging.getLogger(__name__)

_PACKAGE = Path(__file__).parents[1]


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Decorator: compile when first called."""
    try:
        dispatcher = njit(nogil=True, cache=True)(function)
    except RuntimeError:  # numba finds out here whether it may write anywhere
        _warn_once()
        return njit(nogil=True)(function)
    if hasattr(dispatcher, "_cache"):  # not where NUMBA_DISABLE_JIT is set
        dispatcher._cache._cache_file._source_stamp = _sources()
    return dispatcher


@cache
def _sources() -> str:
    """A digest of all files of this package that have compiled functions."""
    texts = (file.read_bytes() for file in sorted(_PACKAGE.rglob("*.py")))
    return hashlib.sha256(b"\0".join(text for text in texts if b"@compiled" in text)).hexdigest()


@cache
def _warn_once() -> None:
    logger.warning("compiled code cannot be kept, each process compiles anew: set NUMBA_CACHE_DIR to a writable folder")
