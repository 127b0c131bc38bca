"""FP8 against slow references: rounding value by value, products in float32, and the policy that is not quantised."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from vla_train.policy.simplevla_oft import SimpleVLAOFT, named_config
from vla_train.policy.simplevla_oft.fp8 import Fp8Linear, fp8_copy, product_reference, quantise, quantise_rows, scaled_product

_DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


def _uniforms(policy, num_rows: int) -> np.ndarray:
    return np.random.default_rng(1).random((num_rows, policy.chunk_size * policy.action_dim), dtype=np.float32)


def _nearest_e4m3(x: np.ndarray) -> np.ndarray:
    """Four significant bits, exponents from -6; halves to even."""
    exponents = np.floor(np.log2(np.maximum(np.abs(x), 2.0**-6)))
    step = 2.0 ** (exponents - 3)
    return np.round(x / step) * step


@given(hnp.arrays(np.float32, (3, 8), elements=st.floats(-1e4, 1e4, width=32)))
def test_each_row_is_scaled_to_the_full_range_and_rounded_to_the_nearest_value(x):
    values, scales = quantise_rows(torch.from_numpy(x))
    assert values.dtype == torch.float8_e4m3fn
    assert scales.shape == (3, 1)
    for row, quantised, scale in zip(x, values.float().numpy(), scales[:, 0].numpy(), strict=True):
        assert np.array_equal(quantised, _nearest_e4m3(row / scale))
        if np.abs(row).max() > 1e-30:
            assert np.abs(quantised).max() == 448


def test_rows_of_zeros_stay_zeros_and_nan_stays_nan():
    values, scales = quantise_rows(torch.tensor([[0.0, 0.0], [1.0, float("nan")]]))
    dequantised = values.float() * scales
    assert (dequantised[0] == 0).all()
    assert dequantised[1].isnan().all()


@pytest.mark.parametrize("device", _DEVICES)
@pytest.mark.parametrize("shape", [(1, 32, 48), (7, 512, 192), (130, 192, 576)], ids=str)
def test_the_scaled_product_is_the_slow_ones_rounded_to_bfloat16(device, shape):
    rows, width, out = shape
    generator = torch.Generator().manual_seed(0)
    x = (torch.randn(rows, width, generator=generator) * torch.logspace(-3, 3, rows)[:, None]).bfloat16()
    weight = torch.randn(out, width, generator=generator) * torch.logspace(-2, 2, out)[:, None]
    quantised = [tensor for pair in (quantise_rows(x), quantise_rows(weight)) for tensor in pair]
    result = scaled_product(*(tensor.to(device) for tensor in quantised)).cpu()
    assert result.dtype == torch.bfloat16
    expected = product_reference(x, weight)
    norms = x.float().norm(dim=1)[:, None] * weight.norm(dim=1)
    # Rounding to bfloat16, and on a GPU sums kept to about 14 bits.
    assert ((result.float() - expected).abs() <= expected.abs() * 2**-8 + norms * (0 if device == "cpu" else 1e-3)).all()


@given(hnp.arrays(np.float32, (2, 32), elements=st.floats(-100, 100, width=32)))
def test_a_quantised_layer_is_near_the_layer_it_stands_for(x):
    weight = torch.randn(48, 32, generator=torch.Generator().manual_seed(0))
    layer = Fp8Linear(32, 48, torch.device("cpu"))
    layer.take(weight)
    exact = torch.from_numpy(x) @ weight.T
    error = (layer(torch.from_numpy(x)) - exact).norm(dim=1)
    assert (error <= 0.06 * torch.from_numpy(x).norm(dim=1) * weight.norm()).all()


@pytest.mark.parametrize("options", [{}, {"lora_rank": 2}, {"compile": True}], ids=str)
@pytest.mark.parametrize("device", _DEVICES)
def test_sampling_in_fp8_stays_near_the_exact_policy_and_training_is_untouched(
    make_policy, make_observation, monkeypatch, device, options
):
    if device == "cpu":
        monkeypatch.setattr(SimpleVLAOFT, "compile_blocks", lambda self: None)
    exact, quantised = (make_policy(device=device, fp8=fp8, **options) for fp8 in (False, True))
    observation, uniforms = make_observation(4), _uniforms(exact, 4)
    for _ in range(4 if device == "cuda" else 1):  # the last from a CUDA graph
        output = quantised.act(observation, uniforms=uniforms, temperature=1.6)
    tokens = torch.from_numpy(output.decision["token_ids"])
    with torch.no_grad():
        logprobs = [
            p.evaluate(observation, {"token_ids": tokens}, temperature=1.6)["logprobs"].cpu().numpy()
            for p in (exact, quantised)
        ]
    np.testing.assert_array_equal(logprobs[1], logprobs[0])
    difference = np.abs(output.decision["logprobs"] - logprobs[0])
    assert 0 < difference.mean() < 0.02
    assert difference.max() < 0.1


def test_pushed_weights_are_quantised_anew(make_policy, make_observation):
    source, target, fresh = make_policy(seed=1), make_policy(seed=2, fp8=True), make_policy(seed=1, fp8=True)
    observation = make_observation(2)
    before = target.act(observation, uniforms=None, temperature=1.0)
    target.load_weights(dict(source.trainable_module().named_parameters()), version=1)
    after, expected = (p.act(observation, uniforms=None, temperature=1.0) for p in (target, fresh))
    assert np.array_equal(after.decision["logprobs"], expected.decision["logprobs"])
    assert not np.array_equal(after.decision["logprobs"], before.decision["logprobs"])


def test_weights_trained_in_place_are_quantised_when_the_version_says_so(make_policy, make_observation):
    policy, observation = make_policy(fp8=True, lora_rank=2), make_observation(2)
    before = policy.act(observation, uniforms=None, temperature=1.0).decision["logprobs"]
    with torch.no_grad():
        for name, parameter in policy.trainable_module().named_parameters():
            if "lora_B" in name and "language_model" in name:
                parameter.add_(0.05)
    assert np.array_equal(policy.act(observation, uniforms=None, temperature=1.0).decision["logprobs"], before)
    policy.version += 1
    assert not np.array_equal(policy.act(observation, uniforms=None, temperature=1.0).decision["logprobs"], before)


def test_the_sampling_module_shares_all_weights_but_those_it_quantises(make_policy):
    model = make_policy().model
    sampler = fp8_copy(model)
    quantise(model, sampler)
    own = {id(parameter) for parameter in model.parameters()}
    assert all(id(parameter) in own for parameter in sampler.parameters())
    assert {type(layer) for block in sampler.language_model.model.layers for layer in block.modules()} >= {Fp8Linear}
    lost = own - {id(parameter) for parameter in sampler.parameters()}
    assert len(lost) == 4 * model.config.language.num_layers
    assert sampler.vision_backbone is model.vision_backbone


def test_a_policy_in_fp8_saves_its_exact_weights(make_policy, tmp_path):
    policy = make_policy(fp8=True)
    policy.save_pretrained(str(tmp_path))
    again = SimpleVLAOFT.from_pretrained(tmp_path, dtype=torch.float32)
    assert all(torch.equal(a, b) for a, b in zip(policy.model.parameters(), again.parameters(), strict=True))


@pytest.mark.slow
def test_the_quantised_blocks_can_be_compiled(make_policy, make_observation):
    plain, compiled, observation = make_policy(fp8=True), make_policy(fp8=True), make_observation(2)
    compiled._sampler.compile_blocks(backend="aot_eager")
    outputs = [p.act(observation, uniforms=None, temperature=1.0) for p in (plain, compiled)]
    np.testing.assert_allclose(outputs[1].decision["logprobs"], outputs[0].decision["logprobs"], atol=1e-3)


def test_a_layer_too_odd_for_the_matrix_units_is_refused_by_name():
    config = named_config("tiny", num_text_tokens=300, prompt_end_token_id=3, chunk_size=3, action_dim=2)
    odd = replace(config, language=replace(config.language, intermediate_size=500))
    model = SimpleVLAOFT.from_random(odd, seed=0, dtype=torch.float32, device="cpu")
    with pytest.raises(ValueError, match=r"mlp\.gate_up_proj is 192 to 1000"):
        fp8_copy(model)
