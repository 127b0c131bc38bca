"""A policy in two Ray actors that decides what no other weights would."""

import hashlib
import os
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from pipeline_envs import DrawingPolicy
from torch import Tensor

from vla_train.distributed.weights import pack_weights
from vla_train.types import Observation, PolicyOutput


class DigestPolicy(DrawingPolicy):
    """Each bit of its weights counts."""

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


def new_policy() -> Any:
    """A `RayPolicy` of it."""
    from vla_train.distributed.ray_policy import RayPolicy

    return RayPolicy(DigestPolicy, replicas=2, timeout_s=60.0, max_restarts=2)


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
