"""vLLM beside PyTorch: the same weights, rows and random numbers give the same tokens and log-probs, after updates too."""

from collections.abc import Callable

import numpy as np
import pytest
import torch

from vla_train.policy.simplevla_oft.policy import SimpleVLAOFTPolicy
from vla_train.types import Observation, PolicyOutput

TOLERANCE = 1e-3
"""Of log-probs, in nats, in float32."""
TEMPERATURE = 1.6


def assert_same(ours: PolicyOutput, theirs: PolicyOutput) -> None:
    np.testing.assert_array_equal(ours.decision["token_ids"], theirs.decision["token_ids"])
    np.testing.assert_array_equal(ours.actions, theirs.actions)
    difference = np.abs(ours.decision["logprobs"] - theirs.decision["logprobs"]).max()
    print(f"largest difference of log-probs: {difference:.2g}")
    assert difference < TOLERANCE


@torch.no_grad()
def disturb(policy: SimpleVLAOFTPolicy, seed: int = 0) -> None:
    """Change all that is trained by a few percent."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in policy.model.parameters():
        if parameter.requires_grad:
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.add_(0.05 * parameter.abs().mean().clamp_min(0.01) * noise)


@pytest.mark.parametrize("checkpoint", [None, "demo"], ids=["golden", "demo"])
def test_vllm_decides_as_pytorch_does(
    make_policy: Callable[..., SimpleVLAOFTPolicy], observation: Observation, uniforms: np.ndarray, checkpoint: str | None
):
    torch_policy, vllm_policy = make_policy("simplevla_oft", checkpoint), make_policy("vllm", checkpoint)
    for drawn, temperature in ((None, 1.0), (uniforms, TEMPERATURE)):
        assert_same(
            vllm_policy.act(observation, uniforms=drawn, temperature=temperature),
            torch_policy.act(observation, uniforms=drawn, temperature=temperature),
        )


@pytest.mark.parametrize("images", [{"images": "rlinf"}, {"jpeg": "on"}, {"jpeg": "off"}], ids=str)
def test_vllm_sees_images_prepared_as_pytorch_does(
    make_policy: Callable[..., SimpleVLAOFTPolicy], observation: Observation, uniforms: np.ndarray, images: dict[str, str]
):
    torch_policy, vllm_policy = make_policy("simplevla_oft", **images), make_policy("vllm", **images)
    assert_same(
        vllm_policy.act(observation, uniforms=uniforms, temperature=TEMPERATURE),
        torch_policy.act(observation, uniforms=uniforms, temperature=TEMPERATURE),
    )


def test_training_recomputes_the_log_probs_that_sampling_kept(
    make_policy: Callable[..., SimpleVLAOFTPolicy], observation: Observation, uniforms: np.ndarray
):
    policy = make_policy("vllm")
    output = policy.act(observation, uniforms=uniforms, temperature=TEMPERATURE)
    tokens = {"token_ids": torch.from_numpy(output.decision["token_ids"])}
    evaluated = policy.evaluate(observation, tokens, temperature=TEMPERATURE)["logprobs"]
    assert evaluated.requires_grad
    np.testing.assert_allclose(output.decision["logprobs"], evaluated.detach().numpy(), atol=TOLERANCE)


def test_a_row_gives_alone_what_it_gives_in_a_batch_of_several_steps(
    make_policy: Callable[..., SimpleVLAOFTPolicy], observation: Observation, uniforms: np.ndarray
):
    policy = make_policy("vllm", kwargs={"max_batched_tokens": "1"})  # at least 2048 all the same: some twenty rows
    rows = np.tile(np.arange(len(observation)), 5)
    many = policy.act(observation.select(rows), uniforms=uniforms[rows], temperature=TEMPERATURE)
    for row in range(len(observation)):
        part = slice(row, row + 1)
        alone = policy.act(observation.select(part), uniforms=uniforms[part], temperature=TEMPERATURE)
        for same in np.flatnonzero(rows == row):
            np.testing.assert_array_equal(alone.decision["token_ids"][0], many.decision["token_ids"][same])
            np.testing.assert_allclose(alone.decision["logprobs"][0], many.decision["logprobs"][same], atol=TOLERANCE)


def test_a_call_that_was_broken_off_does_not_disturb_the_next(
    make_policy: Callable[..., SimpleVLAOFTPolicy], observation: Observation, monkeypatch: pytest.MonkeyPatch
):
    policy = make_policy("vllm")
    before = policy.act(observation, uniforms=None, temperature=1.0)

    def broken_off() -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(policy._engine._engine, "step", broken_off)
        with pytest.raises(KeyboardInterrupt):
            policy.act(observation, uniforms=None, temperature=1.0)
    assert_same(policy.act(observation, uniforms=None, temperature=1.0), before)


def test_the_next_decision_after_an_update_is_taken_by_the_new_weights(
    make_policy: Callable[..., SimpleVLAOFTPolicy], observation: Observation, uniforms: np.ndarray
):
    torch_policy, vllm_policy = make_policy("simplevla_oft"), make_policy("vllm")
    before = vllm_policy.act(observation, uniforms=uniforms, temperature=TEMPERATURE)
    for version in (1, 2):
        for policy in (torch_policy, vllm_policy):
            disturb(policy, seed=version)
            policy.version = version
        after = vllm_policy.act(observation, uniforms=uniforms, temperature=TEMPERATURE)
        assert after.policy_version == version
        assert np.abs(after.decision["logprobs"] - before.decision["logprobs"]).max() > 10 * TOLERANCE
        assert_same(after, torch_policy.act(observation, uniforms=uniforms, temperature=TEMPERATURE))
        before = after


def test_pushed_weights_are_taken_even_under_the_same_version(
    make_policy: Callable[..., SimpleVLAOFTPolicy], observation: Observation, uniforms: np.ndarray
):
    trained, sampler = make_policy("simplevla_oft"), make_policy("vllm")
    sampler.act(observation, uniforms=uniforms, temperature=TEMPERATURE)
    disturb(trained)
    weights = dict(trained.model.named_parameters())
    sampler.load_weights(weights, version=sampler.version)
    assert_same(
        sampler.act(observation, uniforms=uniforms, temperature=TEMPERATURE),
        trained.act(observation, uniforms=uniforms, temperature=TEMPERATURE),
    )


@pytest.mark.parametrize("layers", ["all", "language"])
def test_adapters_decide_too(
    make_policy: Callable[..., SimpleVLAOFTPolicy], observation: Observation, uniforms: np.ndarray, layers: str
):
    policies = [make_policy(factory, lora_rank=4, lora_layers=layers) for factory in ("simplevla_oft", "vllm")]
    for policy in policies:
        disturb(policy)
    torch_policy, vllm_policy = policies
    assert_same(
        vllm_policy.act(observation, uniforms=uniforms, temperature=TEMPERATURE),
        torch_policy.act(observation, uniforms=uniforms, temperature=TEMPERATURE),
    )


def test_images_pass_through_jpeg_where_the_policy_is_told_so(
    make_policy: Callable[..., SimpleVLAOFTPolicy], observation: Observation
):
    outputs = {}
    for jpeg in ("on", "off"):
        torch_policy, vllm_policy = (make_policy(factory, jpeg=jpeg) for factory in ("simplevla_oft", "vllm"))
        outputs[jpeg] = vllm_policy.act(observation, uniforms=None, temperature=1.0)
        assert_same(outputs[jpeg], torch_policy.act(observation, uniforms=None, temperature=1.0))
    assert np.abs(outputs["on"].decision["logprobs"] - outputs["off"].decision["logprobs"]).max() > TOLERANCE
