"""Weights from one process to others, through gloo: the same bits, and an end to every wait."""

import multiprocessing
import os
import threading
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from vla_train.distributed.broadcast_group import ChannelError
from vla_train.distributed.weight_channel import WeightReceiver, WeightSender, obstacle
from vla_train.distributed.weights import PackedWeight, pack_weights

CPU = torch.device("cpu")
LONG_S = 120.0
"""Only a deadlock takes that long."""


def receive(address: tuple[str, int], rank: int, size: int, pipe: Connection, orders: str) -> None:
    """Runs in a process: joins, and does one thing after another."""
    torch.set_num_threads(1)
    receiver = WeightReceiver(address, rank=rank, size=size, device_type="cpu", timeout_s=LONG_S)
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


@pytest.fixture
def start() -> Iterator[Callable[..., tuple[WeightSender, list[Connection]]]]:
    """Makes a channel: a sender here, and a process for each receiver that does what it is told."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["vla_train.distributed.weight_channel"])
    processes: list[Any] = []
    senders: list[WeightSender] = []

    def make(*orders: str, timeout_s: float = LONG_S, **arguments: Any) -> tuple[WeightSender, list[Connection]]:
        senders.append(WeightSender(host="127.0.0.1", receivers=len(orders), device=CPU, timeout_s=timeout_s, **arguments))
        pipes = []
        for rank, order in enumerate(orders, start=1):
            here, there = context.Pipe()
            processes.append(context.Process(target=receive, args=(senders[-1].address, rank, 1 + len(orders), there, order)))
            processes[-1].start()
            pipes.append(here)
        senders[-1].connect()
        return senders[-1], pipes

    yield make
    for sender in senders:
        sender.close()
    for process in processes:
        process.kill()
        process.join()


def some_weights(seed: int) -> dict[str, Tensor]:
    random = torch.Generator().manual_seed(seed)
    return {
        "float32": torch.nn.Parameter(torch.randn(40, 30, generator=random)),
        "bfloat16": torch.randn(7, 5, 3, generator=random).bfloat16(),
        "float16": torch.randn(9, generator=random).half(),
        "int64": torch.randint(-(2**60), 2**60, (11,), generator=random),
        "strided": torch.randn(6, 8, generator=random).t()[::2],
        "scalar": torch.randn((), generator=random),
        "empty": torch.zeros(0, 4),
        "odd": torch.tensor([float("nan"), float("inf"), -0.0]),
    }


def assert_same(got: dict[str, PackedWeight], weights: dict[str, Tensor]) -> None:
    want = pack_weights(weights)
    assert list(got) == list(want)
    for name, weight in want.items():
        assert (got[name].dtype, got[name].shape) == (weight.dtype, weight.shape)
        np.testing.assert_array_equal(got[name].content, weight.content)


@pytest.mark.parametrize("bucket_bytes", [1, 1000, 1 << 20])
def test_all_receivers_get_the_bits_that_the_object_store_would_bring(start: Any, bucket_bytes: int) -> None:
    sender, pipes = start("receive receive receive", "receive receive receive", bucket_bytes=bucket_bytes)
    other = {"renamed": torch.arange(5), **some_weights(2)}
    for weights in (some_weights(0), some_weights(1), other):
        sender.send(weights)
        for pipe in pipes:
            assert_same(pipe.recv(), weights)


def test_what_was_sent_is_kept_while_the_weights_change(start: Any) -> None:
    sender, pipes = start("receive")
    weights = some_weights(0)
    before = {name: weight.detach().clone() for name, weight in weights.items()}
    sender.send(weights)
    with torch.no_grad():
        for weight in weights.values():
            weight.zero_()
    assert_same(pipes[0].recv(), before)
    assert_same(pack_weights(sender.sent()), before)


def test_a_receiver_that_dies_is_an_error(start: Any) -> None:
    sender, pipes = start("receive die")
    sender.send(some_weights(0))
    assert_same(pipes[0].recv(), some_weights(0))
    with pytest.raises(ChannelError):
        sender.send(some_weights(1))


def test_a_receiver_that_hangs_is_an_error_within_the_time(start: Any) -> None:
    sender, _ = start("hang", timeout_s=1.0)
    with pytest.raises(ChannelError, match="within 1 s"):
        sender.send(some_weights(0))


def test_a_receiver_that_never_comes_is_an_error_within_the_time() -> None:
    sender = WeightSender(host="127.0.0.1", receivers=1, device=CPU, timeout_s=1.0)
    with pytest.raises(ChannelError):
        sender.connect()


def test_waiting_ends_at_once_where_the_caller_knows_that_it_is_of_no_use(start: Any) -> None:
    def check() -> None:
        raise ChannelError("its actor died")

    sender, _ = start("hang")
    with pytest.raises(ChannelError, match="its actor died"):
        sender.send(some_weights(0), check)


def test_a_receiver_that_waits_for_weights_ends_with_its_sender(start: Any) -> None:
    sender, pipes = start("receive")
    sender.close()
    assert "given the channel up" in pipes[0].recv()


def test_where_there_is_no_channel_the_reason_is_said() -> None:
    assert obstacle(CPU, [None, None]) is None
    assert "mps" in str(obstacle(torch.device("mps"), [None, None]))


def test_gpus_that_are_shared_or_missing_are_no_channel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.distributed, "is_nccl_available", lambda: True)
    cuda = torch.device("cuda", 0)
    assert obstacle(cuda, ["one", "two", "three"]) is None
    assert "share" in str(obstacle(cuda, ["one", "two", "one"]))
    assert "no GPU" in str(obstacle(cuda, ["one", None]))
