"""The same from GPU to GPU, through NCCL: needs two of them."""

from collections.abc import Iterator

import pytest
import torch
from channel_processes import Start, assert_same, channels, some_weights

from vla_train.distributed.broadcast_group import ChannelError
from vla_train.distributed.weights import pack_weights

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs"),
]
GPU = torch.device("cuda", 0)


@pytest.fixture
def start() -> Iterator[Start]:
    with channels(GPU) as start:
        yield start


@pytest.mark.parametrize("bucket_bytes", [1, 1000, 256 << 20])
def test_a_gpu_gets_the_bits_that_the_object_store_would_bring(start: Start, bucket_bytes: int) -> None:
    sender, pipes = start("receive receive receive", bucket_bytes=bucket_bytes)
    for weights in (some_weights(0, GPU), some_weights(1, GPU), {"large": torch.randn(1 << 20, device=GPU)}):
        sender.send(weights)
        assert_same(pipes[0].recv(), weights)


def test_what_was_sent_is_kept_on_the_host_while_an_update_changes_the_weights(start: Start) -> None:
    sender, _ = start("receive")
    weights = {"large": torch.randn(1 << 24, device=GPU)}
    before = pack_weights({name: weight.clone() for name, weight in weights.items()})
    sender.send(weights)
    weights["large"].zero_()
    assert_same(before, sender.sent())


@pytest.mark.parametrize("fault", ["die", "hang"])
def test_a_peer_that_dies_or_hangs_is_an_error_within_the_time_and_the_next_channel_works(start: Start, fault: str) -> None:
    sender, pipes = start(f"receive {fault}", timeout_s=60.0)
    sender.send(some_weights(0, GPU))
    assert_same(pipes[0].recv(), some_weights(0, GPU))
    sender._timeout_s = 3.0
    with pytest.raises(ChannelError):
        sender.send({"large": torch.zeros(1 << 26, device=GPU)})
    torch.cuda.synchronize()  # nothing hangs on this GPU
    sender, pipes = start("receive")
    sender.send(some_weights(1, GPU))
    assert_same(pipes[0].recv(), some_weights(1, GPU))
