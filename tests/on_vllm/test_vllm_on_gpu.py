"""vLLM on a GPU, in bfloat16: `make test-vllm VLLM=vllm==0.32.0 ARGS="-s -m gpu"`.

Two ways to add up in bfloat16 never agree to the last bit, so the yardstick is PyTorch itself: how far its own bfloat16 is from
its float32, for the same rows and weights.
"""

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor

from vla_train.config import PolicyConfig
from vla_train.policy.factory import policy_factory
from vla_train.policy.simplevla_oft.policy import SimpleVLAOFTPolicy, action_logprobs
from vla_train.policy.vllm.policy import VLLMPolicy
from vla_train.types import IMAGE, EnvDescription, Observation

pytestmark = pytest.mark.gpu

ROWS, TEMPERATURE = 32, 1.6
LOGIT_SPREAD = 4.0
"""Standard deviation of a row's logits: random weights have nearly none, trained ones about this."""


def make(factory: str, **options: object) -> SimpleVLAOFTPolicy:
    config = PolicyConfig(factory=factory, size="small", device="cuda", **{"dtype": "bfloat16"} | options)
    bound = np.ones(7, np.float32)
    env = EnvDescription(observations={}, action_low=-bound, action_high=bound)
    policy = policy_factory(config)(config, env, seed=0)
    assert isinstance(policy, SimpleVLAOFTPolicy)
    with torch.no_grad():
        spread = torch_logits(policy, rows()).std(-1).mean()
        policy.model.language_model.lm_head.weight.mul_(LOGIT_SPREAD / spread)
    policy.version += 1
    return policy


def rows() -> Observation:
    images = np.random.default_rng(0).integers(0, 256, (ROWS, 128, 128, 3), dtype=np.uint8)
    told = ("put the bowl on the stove", "open the top drawer of the cabinet")
    return Observation(arrays={"image": images}, instructions=tuple(told[row % 2] for row in range(ROWS)))


@torch.no_grad()
def torch_logits(policy: SimpleVLAOFTPolicy, observation: Observation) -> Tensor:
    frames = torch.from_numpy(observation[IMAGE]).cuda()
    return policy._logits(frames, *policy._prompt_tensors(observation.instructions), for_gradients=False).float()


def vllm_logits(policy: VLLMPolicy, observation: Observation) -> Tensor:
    prompts = [policy._prompts.ids(instruction) for instruction in observation.instructions]
    return policy._current_engine().logits(torch.from_numpy(observation[IMAGE]), prompts).cuda()


def gap(ours: Tensor, theirs: Tensor) -> Tensor:
    """Of all log-probs, sorted."""
    return (action_logprobs(ours, TEMPERATURE) - action_logprobs(theirs, TEMPERATURE)).abs().flatten().sort().values


def report(name: str, gaps: Tensor) -> float:
    mean, p99, largest = float(gaps.mean()), float(gaps[int(0.99 * len(gaps))]), float(gaps[-1])
    print(f"{name}: mean {mean:.4f}, 99 % {p99:.4f}, largest {largest:.4f} nats")
    return mean


@pytest.fixture(autouse=True)
def freed() -> Iterator[None]:
    yield
    torch.cuda.empty_cache()


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
def test_bfloat16_is_as_near_to_pytorch_as_pytorch_is_to_float32(compiled: bool):
    policy, whole = make("vllm", compile=compiled), make("simplevla_oft", dtype="float32")
    assert isinstance(policy, VLLMPolicy)
    weights = {name: parameter.float() for name, parameter in policy.model.named_parameters()}
    whole.load_weights(weights, version=0)
    bfloat16, exact, ours = torch_logits(policy, rows()), torch_logits(whole, rows()), vllm_logits(policy, rows())
    yardstick = report("PyTorch, bfloat16 and float32", gap(bfloat16, exact))
    assert report("vLLM and PyTorch, bfloat16", gap(ours, bfloat16)) < 2 * yardstick
    assert report("vLLM, bfloat16, and PyTorch, float32", gap(ours, exact)) < 2 * yardstick


def test_an_engine_that_slept_decides_as_before():
    policy = make("vllm", kwargs={"sleep": "on"})
    assert isinstance(policy, VLLMPolicy)
    before = vllm_logits(policy, rows())
    used = [torch.cuda.mem_get_info()[0]]
    policy.rest()
    used.append(torch.cuda.mem_get_info()[0])
    weights = sum(parameter.numel() * parameter.element_size() for parameter in policy.model.parameters())
    assert used[1] - used[0] > 0.8 * weights
    torch.testing.assert_close(vllm_logits(policy, rows()), before, rtol=0, atol=0)


def test_the_next_decision_after_an_update_is_taken_by_the_new_weights():
    policy = make("vllm", compile=True)  # CUDA graphs hold the addresses of weights
    assert isinstance(policy, VLLMPolicy)
    before = vllm_logits(policy, rows())
    with torch.no_grad():
        for parameter in policy.model.parameters():
            parameter.mul_(1.1)
    policy.version += 1
    expected, after = torch_logits(policy, rows()), vllm_logits(policy, rows())
    moved = float(gap(after, before).mean())
    assert report("after the update", gap(after, expected)) < 0.2 * moved
