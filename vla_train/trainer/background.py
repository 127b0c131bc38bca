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


class Background:
    """Work in a thread of its own, from now on. Who has waited for it has waited for the thread's end: until then it frees what
    it held, in C++ too.

    Args:
        work: Called there once.
    """

    def __init__(self, work: Callable[[], None]) -> None:
        self._ended: Future[None] = Future()
        self._thread = threading.Thread(target=self._run, args=(work,), name=_NAME, daemon=True)
        self._thread.start()

    def _run(self, work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException as error:
            self._ended.set_exception(error)
        else:
            self._ended.set_result(None)

    def done(self) -> bool:
        """Whether the work is done, or failed."""
        return self._ended.done()

    def exception(self) -> BaseException | None:
        """Wait for the end; returns what was raised."""
        error = self._ended.exception()  # not `join`, which Python < 3.13 takes for the thread's end where Ctrl-C breaks it off
        self._thread.join()
        return error

    def result(self) -> None:
        """Wait for the end, and raise what was raised."""
        if (error := self.exception()) is not None:
            raise error


def end_process_of(command: Callable[[], None]) -> None:
    """Do a command, the last thing of a process. Where it fails and leaves such a thread, the process ends as it would without
    one: with the same words and the same status."""
    try:
        command()
    except BaseException as error:
        if not any(thread.name == _NAME for thread in threading.enumerate()):
            raise
        status = 1
        if not isinstance(error, SystemExit):
            traceback.print_exc()
        elif error.code is None or isinstance(error.code, int):
            status = error.code or 0
        else:  # `sys.exit("words")`
            print(error.code, file=sys.stderr)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
