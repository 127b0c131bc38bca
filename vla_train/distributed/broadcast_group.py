"""A process group of its own that broadcasts bytes from rank 0 to all others, and in which nobody waits for ever.

The default group of `torch.distributed`, which the ranks of a trainer share, is neither needed nor touched. Whoever fails, dies
or hangs: the others get a `ChannelError`, and the group is of no more use.
"""

import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

_MEET_S = 60.0
"""The longest that others are waited for to join."""
_POLL_S = 0.0005
"""Between looks whether something is done."""
_LOOK_S = 0.1
"""Between looks whether to give up."""
_END_S = 1.0
"""That the end of a group is waited for; it takes a moment where nothing is under way."""


class ChannelError(RuntimeError):
    """The channel cannot be made, or broke; nothing is known of what was sent at that time."""


@contextmanager
def channel_errors() -> Iterator[None]:
    """What PyTorch raises of a channel, memory that is too small included, is an error of the channel."""
    try:
        yield
    except ChannelError:
        raise
    except RuntimeError as error:
        raise ChannelError(f"{type(error).__name__}: {str(error).splitlines()[0]}") from error


def wait_until(done: Callable[[], bool], until: float, check: Callable[[], None], late: str) -> None:
    """Return when `done` says so.

    Raises:
        ChannelError: It does not until then; the message begins with `late`. Or what `check` raises.
    """
    began = looked = time.monotonic()
    while not done():
        now = time.monotonic()
        if now >= until:
            raise ChannelError(f"{late} within {now - began:.0f} s")
        if now >= looked + _LOOK_S:
            check()
            looked = now
        time.sleep(_POLL_S)


def open_store(host: str, port: int, timeout_s: float, *, is_master: bool) -> dist.TCPStore:
    """The store at which all meet: opened by one, joined by the others.

    Raises:
        ChannelError: It cannot be opened, or reached in time.
    """
    with channel_errors():
        timeout = timedelta(seconds=min(timeout_s, _MEET_S))
        return dist.TCPStore(host, port, is_master=is_master, timeout=timeout, wait_for_workers=False)


class BroadcastGroup:
    """A process group, connected, and the broadcasts from rank 0 that are under way in it.

    Args:
        address: Host and port of the store at which all meet.
        rank: Of this process.
        size: How many there are.
        device: Where the bytes are: this process's GPU, or the CPU.
        timeout_s: The longest that a broadcast takes, and joining, which never takes longer than a minute.
        check: Asked again and again meanwhile: raises where waiting is of no use.

    Raises:
        ChannelError: They did not all come in time; or what `check` raises.
        RuntimeError: PyTorch cannot connect them.
    """

    def __init__(
        self,
        address: tuple[str, int],
        rank: int,
        size: int,
        device: torch.device,
        timeout_s: float,
        check: Callable[[], None],
    ) -> None:
        made: list[Any] = []

        def make() -> None:
            try:
                store = open_store(*address, timeout_s, is_master=False)  # its own: one that waits answers nobody else
                made.append(_connected(dist.PrefixStore("group", store), rank, size, device, timedelta(seconds=timeout_s)))
            except Exception as error:
                made.append(error)

        # In a thread: native code that waits for others can only be left behind.
        threading.Thread(target=make, name="weight channel", daemon=True).start()
        until = time.monotonic() + min(timeout_s, _MEET_S)
        wait_until(lambda: bool(made), until, check, "the others did not join the channel")
        if isinstance(made[0], Exception):
            raise made[0]
        self._group = made.pop()
        self._under_way: list[Any] = []

    def broadcast(self, bucket: Tensor) -> None:
        """Begin one; `bucket` is left alone until it is finished."""
        self._under_way.append(self._group.broadcast([bucket]))

    def finish(self, until: float, check: Callable[[], None], *, but: int = 0) -> None:
        """Wait for all that are under way, but for so many of the last; on a GPU they are done then, not only queued.

        Raises:
            ChannelError: They take too long; or what `check` raises.
            RuntimeError: One failed.
        """
        while len(self._under_way) > but:
            work = self._under_way[0]
            wait_until(work.is_completed, until, check, "a broadcast of weights did not end")
            work.wait(timedelta(seconds=1))  # raises what went wrong: with NCCL, only where a time is given
            del self._under_way[0]

    def close(self) -> None:
        """Break off what is under way. In a thread, which is left behind where that takes long."""
        group, self._group = self._group, None
        if group is not None:
            end = threading.Thread(target=_end, args=(group, self._under_way), name="weight channel's end", daemon=True)
            del group  # the thread is the last to hold it
            end.start()
            end.join(_END_S)


def _end(group: Any, under_way: Sequence[Any]) -> None:
    """Gloo cannot break off: its group is kept until its peers or its time end, since freeing it would stop the process."""
    with suppress(RuntimeError):
        group.abort()
    while not all(work.is_completed() for work in under_way):
        time.sleep(_LOOK_S)


def _connected(store: dist.Store, rank: int, size: int, device: torch.device, timeout: timedelta) -> Any:
    if device.type == "cpu":
        return dist.ProcessGroupGloo(store, rank, size, timeout=timeout)
    options = dist.ProcessGroupNCCL.Options()
    options._timeout = timeout
    with _no_watchdog():
        group = dist.ProcessGroupNCCL(store, rank, size, options)
    group.eager_connect_single_device(device)
    return group


@contextmanager
def _no_watchdog() -> Iterator[None]:
    """A group of NCCL's made in this block reports errors and nothing else: by itself, it would end the process."""
    wanted = {"TORCH_NCCL_ASYNC_ERROR_HANDLING": "0", "TORCH_NCCL_ENABLE_MONITORING": "0"}
    before = {name: os.environ.get(name) for name in wanted}
    os.environ.update(wanted)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
