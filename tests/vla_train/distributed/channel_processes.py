"""Processes that receive weights through a channel, and weights to send them."""

import multiprocessing
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from vla_train.distributed.broadcast_group import ChannelError
from vla_train.distributed.weight_channel import WeightReceiver, WeightSender
from vla_train.distributed.weights import PackedWeight, pack_weights

LONG_S = 120.0
"""Only a deadlock takes that long."""


class Start(Protocol):
    """Makes a channel from this process to one process for each text of orders: "receive", "die" and "hang", one by one."""

    def __call__(self, *orders: str, timeout_s: float = LONG_S, **arguments: Any) -> tuple[WeightSender, list[Connection]]: ...


@contextmanager
def channels(device: torch.device) -> Iterator[Start]:
    """A `Start` for weights on a device; receivers of a GPU's weights have the GPUs after the first."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["vla_train.distributed.weight_channel"])
    processes: list[Any] = []
    senders: list[WeightSender] = []

    def start(*orders: str, timeout_s: float = LONG_S, **arguments: Any) -> tuple[WeightSender, list[Connection]]:
        sender = WeightSender(host="127.0.0.1", receivers=len(orders), device=device, timeout_s=timeout_s, **arguments)
        senders.append(sender)
        pipes = []
        for rank, order in enumerate(orders, start=1):
            here, there = context.Pipe()
            described = (sender.address, rank, 1 + len(orders), device.type, there, order)
            processes.append(context.Process(target=_receive, args=described))
            processes[-1].start()
            pipes.append(here)
        sender.connect()
        return sender, pipes

    try:
        yield start
    finally:
        for sender in senders:
            sender.close()
        for process in processes:
            process.kill()
            process.join()


def _receive(address: tuple[str, int], rank: int, size: int, device_type: str, pipe: Connection, orders: str) -> None:
    """Runs in a process of its own; of GPUs, it sees its own alone."""
    torch.set_num_threads(1)
    if device_type == "cuda":
        os.environ["CUDA_VISIBLE_DEVICES"] = str(rank)
    receiver = WeightReceiver(address, rank=rank, size=size, device_type=device_type, timeout_s=LONG_S)
    for order in orders.split():
        match order:
            case "receive":
                try:
                    pipe.send(pack_weights(receiver.receive()))
                except ChannelError as error:
                    pipe.send(str(error))
            case "die":
                os._exit(1)
            case "hang":
                threading.Event().wait()


def some_weights(seed: int, device: torch.device) -> dict[str, Tensor]:
    """Of several dtypes and layouts."""
    random = torch.Generator().manual_seed(seed)
    weights = {
        "float32": torch.randn(40, 30, generator=random),
        "bfloat16": torch.randn(7, 5, 3, generator=random).bfloat16(),
        "float16": torch.randn(9, generator=random).half(),
        "int64": torch.randint(-(2**60), 2**60, (11,), generator=random),
        "strided": torch.randn(6, 8, generator=random).t()[::2],
        "scalar": torch.randn((), generator=random),
        "empty": torch.zeros(0, 4),
        "odd": torch.tensor([float("nan"), float("inf"), -0.0]),
    }
    moved = {name: weight.to(device) for name, weight in weights.items()}
    return moved | {"trained": torch.nn.Parameter(torch.randn(5, generator=random).to(device))}


def assert_same(got: dict[str, PackedWeight], weights: dict[str, Tensor]) -> None:
    """What the object store would have brought."""
    want = pack_weights(weights)
    assert list(got) == list(want)
    for name, weight in want.items():
        assert (got[name].dtype, got[name].shape) == (weight.dtype, weight.shape)
        np.testing.assert_array_equal(got[name].content, weight.content)
