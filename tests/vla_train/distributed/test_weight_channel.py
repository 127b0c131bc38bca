"""Weights from one process to others, through gloo: the same bits, and an end to every wait."""

from collections.abc import Iterator

import pytest
import torch
from channel_processes import Start, assert_same, channels, some_weights

from vla_train.distributed.broadcast_group import ChannelError
from vla_train.distributed.weight_channel import WeightSender, obstacle
from vla_train.distributed.weights import pack_weights

CPU = torch.device("cpu")


@pytest.fixture
def start() -> Iterator[Start]:
    with channels(CPU) as start:
        yield start


@pytest.mark.parametrize("bucket_bytes", [1, 1000, 1 << 20])
def test_all_receivers_get_the_bits_that_the_object_store_would_bring(start: Start, bucket_bytes: int) -> None:
    sender, pipes = start("receive receive receive", "receive receive receive", bucket_bytes=bucket_bytes)
    other = {"renamed": torch.arange(5), **some_weights(2, CPU)}
    for weights in (some_weights(0, CPU), some_weights(1, CPU), other):
        sender.send(weights)
        for pipe in pipes:
            assert_same(pipe.recv(), weights)


def test_what_was_sent_is_kept_while_the_weights_change(start: Start) -> None:
    sender, pipes = start("receive")
    weights = some_weights(0, CPU)
    before = {name: weight.detach().clone() for name, weight in weights.items()}
    sender.send(weights)
    with torch.no_grad():
        for weight in weights.values():
            weight.zero_()
    assert_same(pipes[0].recv(), before)
    assert_same(pack_weights(sender.sent()), before)


def test_a_receiver_that_dies_is_an_error(start: Start) -> None:
    sender, pipes = start("receive die")
    sender.send(some_weights(0, CPU))
    assert_same(pipes[0].recv(), some_weights(0, CPU))
    with pytest.raises(ChannelError):
        sender.send(some_weights(1, CPU))


def test_a_receiver_that_hangs_is_an_error_within_the_time(start: Start) -> None:
    sender, _ = start("hang")
    sender._timeout_s = 1.0  # not before: processes may take long to start
    with pytest.raises(ChannelError, match="within 1 s"):
        sender.send(some_weights(0, CPU))


def test_a_receiver_that_never_comes_is_an_error_within_the_time() -> None:
    sender = WeightSender(host="127.0.0.1", receivers=1, device=CPU, timeout_s=1.0)
    with pytest.raises(ChannelError):
        sender.connect()


def test_waiting_ends_at_once_where_the_caller_knows_that_it_is_of_no_use(start: Start) -> None:
    def check() -> None:
        raise ChannelError("its actor died")

    sender, _ = start("hang")
    with pytest.raises(ChannelError, match="its actor died"):
        sender.send(some_weights(0, CPU), check)


def test_a_receiver_that_waits_for_weights_ends_with_its_sender(start: Start) -> None:
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
