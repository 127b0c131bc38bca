"""Weights straight from the process that trains into those that sample: from GPU to GPU (NCCL), or among CPUs (gloo).

    WeightSender (rank 0)                                       WeightReceiver (ranks 1, 2, ...), in other processes
    opens a TCPStore, `address`     -- told by the caller -->   joins it
    connect                         <-- process group -->       (in the constructor)
    send: say what comes            -- TCPStore -->             receive: make room for it
          pack a bucket, broadcast  -- NCCL or gloo -->                 one bucket after another
          wait until all have it    <-- TCPStore --                     say so

Both sides call each step at the same time; who tells them to is not this module's business (see `ray`).

Invariants: what is received is what was sent, bit for bit. No call waits longer than its time, whoever dies or hangs; it
raises, and the channel is of no more use. What was sent last is kept on the host, since its owner may change it at once.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress

import torch
import torch.distributed as dist
from torch import Tensor

from vla_train.distributed.broadcast_group import BroadcastGroup, ChannelError, channel_errors, open_store, wait_until
from vla_train.distributed.weight_buckets import BUCKET_BYTES, BucketLayout, layout_from_json, layout_of

_ABANDONED = "abandoned"
"""Key of the store: the sender has given up."""


def gpu_name(device: torch.device | None = None) -> str | None:
    """What names a GPU among all of all machines.

    Args:
        device: Which one; None is the current one, if there is one.

    Returns:
        None for anything else.
    """
    if device is None and torch.cuda.is_available():
        device = torch.device("cuda", torch.cuda.current_device())
    return str(torch.cuda.get_device_properties(device).uuid) if device is not None and device.type == "cuda" else None


def obstacle(device: torch.device, gpus: Sequence[str | None]) -> str | None:
    """Why no channel can carry tensors of this device; None where one can.

    Args:
        device: Where the weights are that are to be sent.
        gpus: `gpu_name` of the sender's device, and of each receiver's.
    """
    if device.type == "cpu":
        return None if dist.is_available() and dist.is_gloo_available() else "this PyTorch has no gloo"
    if device.type != "cuda":
        return f"there is none for weights on {device.type}"
    if not (dist.is_available() and dist.is_nccl_available()):
        return "this PyTorch has no NCCL"
    if None in gpus:
        return "a replica has no GPU"
    if len(set(gpus)) < len(gpus):
        return "NCCL wants a GPU for each, and some share one"
    return None


class WeightSender:
    """The end that has the weights; the methods are called from one thread.

    Args:
        host: Address of this machine that receivers reach.
        receivers: How many there are.
        device: Where the weights are: a GPU, on which each receiver has another, or the CPU.
        timeout_s: The longest that any one call takes.
        bucket_bytes: Most bytes of one broadcast.

    Raises:
        ChannelError: No port can be opened.
    """

    def __init__(
        self, *, host: str, receivers: int, device: torch.device, timeout_s: float, bucket_bytes: int = BUCKET_BYTES
    ) -> None:
        self._size = 1 + receivers
        self._device = device
        self._timeout_s = timeout_s
        self._bucket_bytes = bucket_bytes
        self._store = open_store(host, 0, timeout_s, is_master=True)
        self.address = (host, self._store.port)
        """For `WeightReceiver`."""
        self._group: BroadcastGroup | None = None
        self._layout: BucketLayout | None = None
        self._sent = 0
        self._kept: list[Tensor] = []
        """What was sent last, on the host: each bucket."""
        self._keeping: torch.cuda.Event | None = None
        """When it is there."""

    def connect(self, check: Callable[[], None] = lambda: None) -> None:
        """Meet the receivers, who are being made meanwhile.

        Args:
            check: Asked again and again while this waits: raises where waiting is of no use.

        Raises:
            ChannelError: They did not all come in time; or what `check` raises.
        """
        with self._closing():
            self._group = BroadcastGroup(self.address, 0, self._size, self._device, self._timeout_s, check)

    def send(self, weights: Mapping[str, Tensor], check: Callable[[], None] = lambda: None) -> None:
        """Give weights to all receivers, who are in `receive` meanwhile; returns when all have them.

        Args:
            weights: On the channel's device.
            check: As for `connect`.

        Raises:
            ChannelError: They did not all get them in time; or what `check` raises.
        """
        with self._closing():
            until = time.monotonic() + self._timeout_s
            self._announce(weights)
            self._broadcast(weights, until, check)
            got = [f"{self._sent}/{rank}" for rank in range(1, self._size)]
            wait_until(lambda: self._store.check(got), until, check, "not all receivers said that they have the weights")
            for key in (f"{self._sent}/layout", *got):
                self._store.delete_key(key)
            self._keep(weights)

    def sent(self) -> dict[str, Tensor]:
        """What was sent last, on the host; overwritten by the next `send`."""
        assert self._layout is not None
        if self._keeping is not None:
            self._keeping.synchronize()
        return self._layout.unpack(self._kept)

    def close(self) -> None:
        """End the channel; receivers that wait in it raise."""
        with suppress(RuntimeError):
            self._store.set(_ABANDONED, "")
        if self._group is not None:
            self._group.close()

    @contextmanager
    def _closing(self) -> Iterator[None]:
        """The channel ends with an error, since nobody knows how far the others are."""
        try:
            with channel_errors():
                yield
        except BaseException:
            self.close()
            raise

    def _announce(self, weights: Mapping[str, Tensor]) -> None:
        """Say what comes; nothing more than that it comes, where it is as before."""
        layout = layout_of(weights, bucket_bytes=self._bucket_bytes)
        self._sent += 1
        self._store.set(f"{self._sent}/layout", "" if layout == self._layout else layout.to_json())
        if layout != self._layout:
            pinned = self._device.type == "cuda"
            self._kept = []  # first give back what the old ones were
            self._kept = [torch.empty(size, dtype=torch.uint8, pin_memory=pinned) for size in layout.sizes]
        self._layout = layout

    def _broadcast(self, weights: Mapping[str, Tensor], until: float, check: Callable[[], None]) -> None:
        """One bucket is packed while the one before is on its way. On the CPU they travel from where they are kept."""
        assert self._layout is not None
        assert self._group is not None
        sizes = self._layout.sizes
        if self._device.type == "cuda":
            pair = [torch.empty(max(sizes, default=0), dtype=torch.uint8, device=self._device) for _ in sizes[:2]]
            buckets = [pair[index % 2][:size] for index, size in enumerate(sizes)]
        else:
            buckets = self._kept
        for index, bucket in enumerate(buckets):
            self._group.finish(until, check, but=1)
            self._layout.pack(index, weights, bucket)
            self._group.broadcast(bucket)
        self._group.finish(until, check)

    def _keep(self, weights: Mapping[str, Tensor]) -> None:
        """Have the GPU copy what was sent to the host: before whatever it is told next, and nobody waits for it."""
        assert self._layout is not None
        if self._device.type == "cuda":
            for index, bucket in enumerate(self._kept):
                self._layout.pack(index, weights, bucket)
            self._keeping = torch.cuda.current_stream(self._device).record_event()


class WeightReceiver:
    """An end that takes the weights; the constructor returns when all ends have met.

    Args:
        address: `WeightSender.address`.
        rank: Of this receiver: 1 to `size` - 1, each once.
        size: Receivers and the sender.
        device_type: Where the weights arrive: "cpu" for a sender that has them there, "cuda" is this process's current GPU.
        timeout_s: The longest that any one call takes.

    Raises:
        ChannelError: The others did not all come in time.
    """

    def __init__(self, address: tuple[str, int], *, rank: int, size: int, device_type: str, timeout_s: float) -> None:
        self._rank = rank
        self._device = torch.device("cuda", torch.cuda.current_device()) if device_type == "cuda" else torch.device("cpu")
        self._timeout_s = timeout_s
        self._layout: BucketLayout | None = None
        self._received = 0
        with channel_errors():
            self._store = open_store(*address, timeout_s, is_master=False)
            self._group = BroadcastGroup(address, rank, size, self._device, timeout_s, self._check)

    def receive(self) -> dict[str, Tensor]:
        """What the sender sends now, on this end's device.

        Raises:
            ChannelError: It did not arrive in time, or there is no room for it.
        """
        try:
            with channel_errors():
                return self._receive()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Leave the channel."""
        self._group.close()

    def _receive(self) -> dict[str, Tensor]:
        until = time.monotonic() + self._timeout_s
        self._received += 1
        key = f"{self._received}/layout"
        wait_until(lambda: self._store.check([key]), until, self._check, "the sender sent nothing")
        if said := self._store.get(key).decode():
            self._layout = layout_from_json(said)
        assert self._layout is not None
        buckets = [torch.empty(size, dtype=torch.uint8, device=self._device) for size in self._layout.sizes]
        for bucket in buckets:
            self._group.broadcast(bucket)
        self._group.finish(until, self._check)
        self._store.set(f"{self._received}/{self._rank}", "")
        return self._layout.unpack(buckets)

    def _check(self) -> None:
        if self._store.check([_ABANDONED]):
            raise ChannelError("the sender has given the channel up")
