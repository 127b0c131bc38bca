"""Functions compiled to native code that runs without the GIL; kept on disk for the next process where that is possible.

Where numba may write neither beside the source nor in the user's home, everything works, but each process compiles anew.
"""

import logging
from collections.abc import Callable
from functools import cache
from typing import Any

from numba import njit

logger = logging.getLogger(__name__)


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Decorator: compile when first called."""
    try:
        return njit(nogil=True, cache=True)(function)
    except RuntimeError:  # numba finds out here whether it may write anywhere
        _warn_once()
        return njit(nogil=True)(function)


@cache
def _warn_once() -> None:
    logger.warning("compiled code cannot be kept, each process compiles anew: set NUMBA_CACHE_DIR to a writable folder")
