"""Threads that write while training goes on, and the end of a process that waits for none of them.

Such a thread does not keep a process from ending; but one that is in C++ when the interpreter ends aborts it.
"""

import os
import sys
import threading
import traceback
from collections.abc import Callable
from concurrent.futures import Future

_NAME = "checkpoint"


def start(work: Callable[[], None]) -> Future[None]:
    """Do it in a thread of its own."""
    future: Future[None] = Future()

    def run() -> None:
        try:
            work()
        except BaseException as error:
            future.set_exception(error)
        else:
            future.set_result(None)

    threading.Thread(target=run, name=_NAME, daemon=True).start()
    return future


def end_process_of(command: Callable[[], None]) -> None:
    """Do a command, the last thing of a process. Where it fails and leaves such a thread, the process ends as it would without
    one: with the same words and the same status."""
    try:
        command()
    except BaseException as error:
        if not any(thread.name == _NAME for thread in threading.enumerate()):
            raise
        if not isinstance(error, SystemExit):
            traceback.print_exc()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(error.code if isinstance(error, SystemExit) and isinstance(error.code, int) else 1)
