"""Weights on their way to replicas in Ray actors: straight or through the object store, and what dies or hangs meanwhile."""

import hashlib
import logging
import os
import signal
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pytest
import torch
from pipeline_envs import DrawingPolicy
from torch import Tensor

from vla_train.distributed import weight_channel
from vla_train.distributed.weights import pack_weights
from vla_train.types import Observation, PolicyOutput

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("ray_nodes")]


class DigestPolicy(DrawingPolicy):
    """Decides what no other weights would: each bit of them counts."""

    digest = 0.0

    def __init__(self) -> None:
        super().__init__()
        self.played_with = {"pid": os.getpid()}

    def act(self, observation: Observation, *, uniforms: np.ndarray | None, temperature: float) -> PolicyOutput:
        output = super().act(observation, uniforms=uniforms, temperature=temperature)
        output.actions[:] += self.digest
        return output

    def load_weights(self, weights: Mapping[str, Tensor], *, version: int) -> None:
        if "unknown" in weights:
            raise ValueError("this policy has no weight 'unknown'")
        content = hashlib.sha256()
        for name, weight in pack_weights(weights).items():
            content.update(f"{name} {weight.dtype} {weight.shape} ".encode() + weight.content.tobytes())
        self.digest, self.version = int.from_bytes(content.digest()[:2], "big") / 2**16, version


@pytest.fixture
def policy() -> Iterator[Any]:
    from vla_train.distributed.ray_policy import RayPolicy

    policy = RayPolicy(DigestPolicy, replicas=2, timeout_s=60.0, max_restarts=2)
    yield policy
    policy.close()


def some_weights(seed: int) -> dict[str, Tensor]:
    random = torch.Generator().manual_seed(seed)
    return {
        "layer.lora_A": torch.nn.Parameter(torch.randn(4, 300, generator=random)),
        "layer.lora_B": torch.randn(300, 4, generator=random).bfloat16().t(),
        "scale": torch.randn((), generator=random).half(),
    }


def some_rows(seed: int) -> tuple[Observation, np.ndarray]:
    random = np.random.default_rng(seed)
    seen = Observation(arrays={"image": random.integers(0, 256, (5, 4, 5, 3), np.uint8)}, instructions=("go",) * 5)
    return seen, random.random((5, DrawingPolicy.chunk_size * DrawingPolicy.action_dim), np.float32)


def decided_locally(seen: Observation, uniforms: np.ndarray, weights: Mapping[str, Tensor]) -> np.ndarray:
    local = DigestPolicy()
    local.load_weights(weights, version=0)
    return local.act(seen, uniforms=uniforms, temperature=1.0).actions


def assert_decides_by(policy: Any, weights: Mapping[str, Tensor], version: int) -> None:
    seen, uniforms = some_rows(0)
    got = policy.act(seen, uniforms=uniforms, temperature=1.0)
    np.testing.assert_array_equal(got.actions, decided_locally(seen, uniforms, weights))
    assert got.policy_version == policy.version == version


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
    policy._timeout_s = policy._channel._timeout_s = 60.0 if number == signal.SIGKILL else 2.0
    policy.load_weights(some_weights(2), version=2)
    policy._timeout_s = 60.0
    assert policy._channel is None
    assert_decides_by(policy, some_weights(2), 2)
    policy.load_weights(some_weights(3), version=3)
    assert policy._channel is not None
    assert_decides_by(policy, some_weights(3), 3)


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


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_a_replica_that_dies_or_hangs_with_two_calls_under_way_is_replaced_and_both_are_decided_as_they_would_have_been(
    number: signal.Signals, policy: Any
) -> None:
    policy.load_weights(some_weights(1), version=1)
    os.kill(policy.played_with["pid"], number)
    policy._timeout_s = 60.0 if number == signal.SIGKILL else 5.0
    batches = [some_rows(seed) for seed in (0, 1)]
    calls = [policy.begin(seen, uniforms=uniforms, temperature=1.0) for seen, uniforms in batches]
    for (seen, uniforms), call in zip(batches, calls, strict=True):
        while not call.ready(0.1):
            pass
        got = call.result()
        np.testing.assert_array_equal(got.actions, decided_locally(seen, uniforms, some_weights(1)))
        assert got.policy_version == 1
    assert [len(restarts) for restarts in policy._restarts] == [1, 0]


def test_weights_are_pushed_behind_calls_that_were_begun(policy: Any) -> None:
    policy.load_weights(some_weights(1), version=1)
    seen, uniforms = some_rows(0)
    call = policy.begin(seen, uniforms=uniforms, temperature=1.0)
    policy.load_weights(some_weights(2), version=2)
    np.testing.assert_array_equal(call.result().actions, decided_locally(seen, uniforms, some_weights(1)))
    assert_decides_by(policy, some_weights(2), 2)
