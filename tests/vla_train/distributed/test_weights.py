"""Weights on their way through an object store."""

import pickle

import pytest
import torch

from vla_train.distributed.weights import pack_weights, unpack_weights


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64])
@pytest.mark.parametrize("shape", [(), (3,), (2, 3, 4), (0, 5)])
def test_weights_arrive_as_they_were(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    weight = (100 * torch.randn(shape)).to(dtype)
    arrived = unpack_weights(pickle.loads(pickle.dumps(pack_weights({"weight": weight}))))["weight"]
    assert arrived.dtype == dtype
    assert arrived.shape == shape
    assert torch.equal(arrived, weight)


def test_strided_and_trainable_weights_are_packed_too() -> None:
    weight = torch.nn.Parameter(torch.arange(12.0).reshape(3, 4)).t()
    assert torch.equal(unpack_weights(pack_weights({"w": weight}))["w"], weight.detach())


def test_weights_on_the_host_are_not_copied() -> None:
    weight = torch.zeros(5)
    arrived = unpack_weights(pack_weights({"w": weight}))["w"]
    weight += 1
    assert torch.equal(arrived, weight)
