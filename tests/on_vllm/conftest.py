"""Tests of the vLLM backend: `make test-vllm` runs them, in an environment of their own. Elsewhere there are none."""

import os
import shutil
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch

from vla_train.config import PolicyConfig
from vla_train.policy.simplevla_oft.build import build_policy
from vla_train.policy.simplevla_oft.policy import SimpleVLAOFTPolicy
from vla_train.policy.simplevla_oft.small_tokenizer import small_tokenizer
from vla_train.types import EnvDescription, Observation

os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
if find_spec("vllm") is None:
    collect_ignore_glob = ["test_*.py"]
elif torch.cuda.is_available():  # that vLLM computes on CUDA alone
    collect_ignore_glob = ["test_vllm_parity.py", "test_vllm_trainer.py"]

GOLDEN = Path(__file__).parents[1] / "vla_train" / "policy" / "simplevla_oft" / "golden"
_INSTRUCTIONS = (
    "pick up the black bowl between the plate and the ramekin and place it on the plate",
    "put the bowl on the stove",
    "Open the top drawer of the cabinet",
)


@pytest.fixture(scope="session")
def golden_with_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The golden checkpoint, and a tokenizer, which it has none of."""
    folder = tmp_path_factory.mktemp("golden")
    for name in ("config.json", "dataset_statistics.json", "model.safetensors"):
        shutil.copy(GOLDEN / name, folder)
    (folder / "tokenizer.json").write_text(small_tokenizer().to_str())
    return folder


@pytest.fixture
def make_policy(golden_with_tokenizer: Path) -> Callable[..., SimpleVLAOFTPolicy]:
    """A policy of the golden checkpoint or another, sampled by PyTorch or by vLLM."""

    def make(factory: str, checkpoint: str | None = None, **options: object) -> SimpleVLAOFTPolicy:
        from vla_train.policy.vllm import policy as on_vllm

        chosen = {"checkpoint": checkpoint or str(golden_with_tokenizer), "device": "cpu", "dtype": "float32"} | options
        config = PolicyConfig(factory=factory, **chosen)
        suite = "libero_90" if checkpoint == "demo" else "libero_spatial"
        bound = np.ones(7, np.float32)
        env = EnvDescription(observations={}, action_low=-bound, action_high=bound, suite=suite)
        return (on_vllm.build_policy if factory == "vllm" else build_policy)(config, env, seed=0)

    return make


@pytest.fixture
def observation() -> Observation:
    """Rows with prompts of several lengths."""
    images = np.random.default_rng(0).integers(0, 256, (7, 64, 80, 3), dtype=np.uint8)
    return Observation(arrays={"image": images}, instructions=tuple(_INSTRUCTIONS[row % 3] for row in range(7)))


@pytest.fixture
def uniforms(observation: Observation) -> np.ndarray:
    return np.random.default_rng(1).random((len(observation), 56), np.float32)
