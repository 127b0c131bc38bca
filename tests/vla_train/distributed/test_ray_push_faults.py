"""Replicas in Ray actors that die or hang while weights are pushed, or with calls under way."""

import os
import signal
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from pushed_policy import assert_decides_by, decided_locally, new_policy, some_rows, some_weights

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("ray_nodes")]


@pytest.fixture
def policy() -> Iterator[Any]:
    policy = new_policy()
    yield policy
    policy.close()


def test_a_new_replica_takes_what_was_pushed_though_it_was_changed_since(policy: Any) -> None:
    weights, pushed = some_weights(1), some_weights(1)
    policy.load_weights(weights, version=1)
    with torch.no_grad():
        for weight in weights.values():
            weight.zero_()  # as an update does
    os.kill(policy.played_with["pid"], signal.SIGKILL)
    assert_decides_by(policy, pushed, 1)
    policy.load_weights(some_weights(2), version=2)
    assert policy._channel is not None, "the new replica is not part of a channel"
    assert_decides_by(policy, some_weights(2), 2)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_a_replica_that_dies_or_hangs_during_a_push_is_replaced_and_the_next_push_goes_straight(
    number: signal.Signals, policy: Any
) -> None:
    policy.load_weights(some_weights(1), version=1)
    os.kill(policy.played_with["pid"], number)
    if number == signal.SIGSTOP:
        policy._channel._timeout_s = 2.0
        policy._timeout_s = 10.0  # more: those that are well must answer within it
    policy.load_weights(some_weights(2), version=2)
    policy._timeout_s = 60.0
    assert policy._channel is None
    assert_decides_by(policy, some_weights(2), 2)
    policy.load_weights(some_weights(3), version=3)
    assert policy._channel is not None
    assert_decides_by(policy, some_weights(3), 3)


def test_a_replica_that_dies_with_two_calls_under_way_is_replaced_and_both_are_decided_as_they_would_have_been(
    policy: Any,
) -> None:
    policy.load_weights(some_weights(1), version=1)
    os.kill(policy.played_with["pid"], signal.SIGKILL)
    batches = [some_rows(seed) for seed in (0, 1)]
    calls = [policy.begin_act(seen, uniforms=uniforms, temperature=1.0) for seen, uniforms in batches]
    for (seen, uniforms), call in zip(batches, calls, strict=True):
        while not call.ready(0.1):
            pass
        got = call.result()
        np.testing.assert_array_equal(got.actions, decided_locally(seen, uniforms, some_weights(1)))
        assert got.policy_version == 1
    assert [len(restarts) for restarts in policy._restarts] == [1, 0]
