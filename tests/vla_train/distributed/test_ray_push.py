"""Weights on their way to replicas in Ray actors: straight or through the object store."""

import logging
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from pushed_policy import assert_decides_by, decided_locally, new_policy, some_rows, some_weights

from vla_train.distributed import weight_channel

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def shared(ray_nodes: Any) -> Iterator[Any]:
    policy = new_policy()
    yield policy
    policy.close()


@pytest.fixture
def policy(shared: Any) -> Any:
    """A policy that has no channel yet; its replicas live on, as making them takes long."""
    if shared._channel is not None:
        shared._channel.close()
    shared._channel, shared._try_channel, shared._way = None, True, ""
    return shared


@pytest.mark.parametrize("way", ["straight", "through Ray's object store: none here"])
def test_replicas_have_the_same_bits_by_either_way_which_is_said_once(
    way: str, policy: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    if "store" in way:
        monkeypatch.setattr(weight_channel, "obstacle", lambda device, gpus: "none here")
    caplog.set_level(logging.INFO, "vla_train")
    for version in (1, 2):
        policy.load_weights(some_weights(version), version=version)
        assert_decides_by(policy, some_weights(version), version)
    assert (policy._channel is None) == ("store" in way)
    said = [record.message for record in caplog.records if "weights go" in record.message]
    assert len(said) == 1
    assert f"replicas {way}" in said[0]


def test_a_channel_that_breaks_though_all_live_is_not_made_again(policy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*arguments: Any) -> None:
        raise RuntimeError("NCCL error")

    monkeypatch.setattr(weight_channel.WeightSender, "_broadcast", broken)
    for version in (1, 2):
        policy.load_weights(some_weights(version), version=version)
        assert policy._channel is None
        assert_decides_by(policy, some_weights(version), version)
    assert [len(restarts) for restarts in policy._restarts] == [0, 0]


def test_weights_that_the_policy_refuses_are_its_own_error(policy: Any) -> None:
    policy.load_weights(some_weights(1), version=1)
    with pytest.raises(ValueError, match="no weight 'unknown'"):
        policy.load_weights({"unknown": torch.zeros(2)}, version=2)


def test_weights_are_pushed_behind_calls_that_were_begun(policy: Any) -> None:
    policy.load_weights(some_weights(1), version=1)
    seen, uniforms = some_rows(0)
    call = policy.begin_act(seen, uniforms=uniforms, temperature=1.0)
    policy.load_weights(some_weights(2), version=2)
    np.testing.assert_array_equal(call.result().actions, decided_locally(seen, uniforms, some_weights(1)))
    assert_decides_by(policy, some_weights(2), 2)
