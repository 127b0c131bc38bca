"""The golden checkpoint, and small policies with random weights."""

from collections.abc import Callable
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
import torch
from fake_hub import Hub

from vla_train.config import PolicyConfig
from vla_train.policy.simplevla_oft import SimpleVLAOFT
from vla_train.policy.simplevla_oft.build import build_policy
from vla_train.policy.simplevla_oft.policy import SimpleVLAOFTPolicy
from vla_train.types import EnvDescription, Observation

_INSTRUCTIONS = (
    "pick up the black bowl between the plate and the ramekin and place it on the plate",
    "put the bowl on the stove",
    "Open the top drawer of the cabinet",
)


@pytest.fixture(scope="session")
def golden_folder() -> Path:
    return Path(__file__).parent / "golden"


@pytest.fixture(scope="session")
def golden_cases(golden_folder: Path) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(array) for name, array in np.load(golden_folder / "cases.npz").items()}


@pytest.fixture(scope="session")
def golden_model(golden_folder: Path) -> SimpleVLAOFT:
    return SimpleVLAOFT.from_pretrained(golden_folder, dtype=torch.float32)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    hub = Hub(tmp_path)
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: hub)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", hub.snapshot_download)
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", hub.try_to_load_from_cache)
    return hub


@pytest.fixture
def make_policy() -> Callable[..., SimpleVLAOFTPolicy]:
    def make(action_dim: int = 7, suite: str | None = "libero_spatial", seed: int = 0, **options) -> SimpleVLAOFTPolicy:
        bound = np.ones(action_dim, np.float32)
        config = PolicyConfig(**{"device": "cpu", "dtype": "float32", **options})
        env = EnvDescription(observations={}, action_low=-bound, action_high=bound, suite=suite)
        return build_policy(config, env, seed=seed)

    return make


@pytest.fixture
def make_observation() -> Callable[..., Observation]:
    def make(num_rows: int = 5, size: int = 64, seed: int = 0) -> Observation:
        images = np.random.default_rng(seed).integers(0, 256, (num_rows, size, size, 3), dtype=np.uint8)
        return Observation(arrays={"image": images}, instructions=tuple(_INSTRUCTIONS[row % 3] for row in range(num_rows)))

    return make
