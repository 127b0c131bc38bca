"""Settings of all tests: a property test's examples take the time they take, Ctrl-C is heard also in a background job,
processors round alike, and whatever draws needs no display."""

import gc
import os
import signal

from hypothesis import settings

# AMX rounds bfloat16 by the size of a batch; tests hold sampling and training equal. Read when PyTorch first multiplies.
os.environ.setdefault("ONEDNN_MAX_CPU_ISA", "AVX512_CORE_BF16")
os.environ.setdefault("MUJOCO_GL", "egl")

settings.register_profile("untimed", deadline=None)  # a busy machine is no fault of the code
settings.load_profile("untimed")

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as a shell leaves it to what it starts with `&`
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_finish() -> None:
    """What is imported by now stays: the collector of garbage need not look at it again and again."""
    gc.collect()
    gc.freeze()
