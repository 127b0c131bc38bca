"""How a process ends that leaves a thread in C++ behind: as any other."""

import subprocess
import sys

import pytest

LEFT_BEHIND = """
import sys, threading
import torch
from vla_train.trainer.background import end_process_of, start

computing = threading.Event()

def compute():
    values = torch.ones(1 << 20)
    computing.set()
    while True:
        values.sin_()

def command():
    start(compute)
    computing.wait()
    {end}

end_process_of(command)
"""


@pytest.mark.parametrize(
    ("end", "status", "last"),
    [("raise SystemExit(130)", 130, ""), ("raise OSError('the disk is gone')", 1, "OSError: the disk is gone")],
)
def test_a_thread_that_nobody_waits_for_does_not_change_the_status(end: str, status: int, last: str) -> None:
    command = [sys.executable, "-c", LEFT_BEHIND.format(end=end)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert ended.returncode == status
    assert ended.stderr.strip().endswith(last)
    assert "terminate called" not in ended.stderr
