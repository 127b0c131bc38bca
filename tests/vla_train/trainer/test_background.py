"""How a process ends that had a thread in C++: as any other."""

import subprocess
import sys

import pytest

from vla_train.trainer.background import Background

LEFT_BEHIND = """
import sys, threading
import torch
from vla_train.trainer.background import Background, end_process_of

computing = threading.Event()

def compute():
    values = torch.ones(1 << 20)
    computing.set()
    while True:
        values.sin_()

def command():
    Background(compute)
    computing.wait()
    {end}

end_process_of(command)
"""


@pytest.mark.parametrize(
    ("end", "status", "last"),
    [
        ("raise SystemExit(130)", 130, ""),
        ("raise SystemExit", 0, ""),
        ("raise SystemExit('no such task')", 1, "no such task"),
        ("raise OSError('the disk is gone')", 1, "OSError: the disk is gone"),
    ],
)
def test_a_thread_that_nobody_waits_for_does_not_change_the_status(end: str, status: int, last: str) -> None:
    command = [sys.executable, "-c", LEFT_BEHIND.format(end=end)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert ended.returncode == status
    assert ended.stderr.strip().endswith(last)
    assert "terminate called" not in ended.stderr


WAITED_FOR = """
import time
import torch
from vla_train.trainer.background import Background, end_process_of

class Held:
    def __init__(self):
        self.values = torch.ones(1 << 20)

    def __call__(self):
        time.sleep(0.2)  # until only the thread holds this

    def __del__(self):
        for _ in range(500):  # as freeing gigabytes of copies takes a while
            self.values.sin_()

end_process_of(lambda: Background(Held()).result())
"""


def test_who_waited_for_a_result_has_waited_for_what_the_thread_frees() -> None:
    ended = subprocess.run([sys.executable, "-c", WAITED_FOR], capture_output=True, text=True, timeout=60)
    assert (ended.returncode, ended.stderr) == (0, "")


def test_what_was_raised_is_raised_to_who_waits() -> None:
    failed = Background(lambda: 1 / 0)  # type: ignore[arg-type]
    assert isinstance(failed.exception(), ZeroDivisionError)
    assert failed.done()
    with pytest.raises(ZeroDivisionError):
        failed.result()
