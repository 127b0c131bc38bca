"""Frozen layers and their adapters, of every kind, against a plain layer whose weight is what they stand for."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from vla_train.policy.simplevla_oft import SimpleVLAOFT, named_config
from vla_train.policy.simplevla_oft.frozen import QuantisedLinear, quantise_base
from vla_train.policy.simplevla_oft.lora import AdaptersInProducts, LoraLinear

_DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
_KINDS = ["auto", "fp8", "nf4"]
_BOUNDS = {"auto": 0.01, "fp8": 0.05, "nf4": 0.01}
"""Relative errors of bfloat16 layers; FP8 rounds inputs and gradients to 4 significant bits."""


def _layers(kind: str, device: str, *, adapted: bool = True) -> tuple[nn.Module, nn.Module]:
    """A layer in bfloat16, and the same in float32 from plain operations."""
    torch.manual_seed(0)
    linear = nn.Linear(128, 96, bias=kind == "auto").to(device, torch.bfloat16).requires_grad_(False)
    base = linear if kind == "auto" else QuantisedLinear(linear, kind, rank=8 if adapted else 0)
    plain = nn.Linear(128, 96).to(device).requires_grad_(False)
    plain.weight.copy_(linear.weight if kind == "auto" else base.weight())
    plain.bias.copy_(linear.bias if kind == "auto" else torch.zeros(96))
    if not adapted:
        return base, plain
    lora_a, lora_b = torch.randn(8, 128, device=device) / 12, torch.randn(96, 8, device=device) / 30
    layer = LoraLinear(base, lora_a.bfloat16(), lora_b.bfloat16(), scaling=0.5)
    return layer, _Reference(plain, lora_a.bfloat16().float(), lora_b.bfloat16().float())


class _Reference(nn.Module):
    def __init__(self, plain: nn.Linear, lora_a: Tensor, lora_b: Tensor) -> None:
        super().__init__()
        self.plain, self.lora_A, self.lora_B = plain, nn.Parameter(lora_a), nn.Parameter(lora_b)

    def forward(self, x: Tensor) -> Tensor:
        return self.plain(x) + 0.5 * (x @ self.lora_A.T) @ self.lora_B.T


def _computed(layer: nn.Module, device: str) -> dict[str, Tensor]:
    """Output and all gradients, of the same input and the same gradient to the output."""
    generator = torch.Generator().manual_seed(1)
    dtype = torch.float32 if isinstance(layer, _Reference | nn.Linear) else torch.bfloat16
    x = torch.randn(3, 50, 128, generator=generator).to(device, dtype).requires_grad_()
    dy = (1e-7 * torch.randn(3, 50, 96, generator=generator)).to(device, dtype)
    AdaptersInProducts(nn.ModuleList([layer])).refresh()
    y = layer(x)
    y.backward(dy)
    gradients = {name: parameter.grad for name, parameter in layer.named_parameters() if parameter.grad is not None}
    return {"y": y.detach(), "x": x.grad, **gradients}


@pytest.mark.parametrize("device", _DEVICES)
@pytest.mark.parametrize(("kind", "adapted"), [(kind, True) for kind in _KINDS] + [("fp8", False), ("nf4", False)])
def test_a_layer_and_its_gradients_are_those_of_the_plain_layer_it_stands_for(kind, adapted, device):
    layer, reference = _layers(kind, device, adapted=adapted)
    result, expected = _computed(layer, device), _computed(reference, device)
    assert result.keys() == expected.keys() == ({"y", "x", "lora_A", "lora_B"} if adapted else {"y", "x"})
    for name, tensor in expected.items():
        assert tensor.norm() > 0
        assert (result[name].float() - tensor).norm() < _BOUNDS[kind] * tensor.norm(), name


@pytest.mark.parametrize("device", _DEVICES)
@pytest.mark.parametrize("kind", _KINDS)
def test_compiled_layers_give_the_gradients_of_uncompiled_ones(kind, device):
    """PyTorch 2.11 has compiled autograd functions to gradients of zero."""
    torch._dynamo.reset()
    layer, _ = _layers(kind, device)
    expected = _computed(layer, device)
    layer.zero_grad()
    layer.compile(backend="aot_eager")
    with torch.no_grad():
        layer(torch.zeros(2, 3, 128, device=device, dtype=torch.bfloat16))  # as sampling does before training
    for name, tensor in _computed(layer, device).items():
        assert torch.equal(tensor, expected[name]), name


@pytest.mark.parametrize("kind", ["fp8", "nf4"])
def test_a_quantised_weight_is_near_the_one_it_was_made_from(kind):
    linear = nn.Linear(128, 96, bias=False)
    error = (QuantisedLinear(linear, kind, rank=0).weight() - linear.weight).norm() / linear.weight.norm()
    assert 0.001 < error < {"fp8": 0.03, "nf4": 0.12}[kind]


def _uniforms(policy, num_rows: int) -> np.ndarray:
    return np.random.default_rng(1).random((num_rows, policy.chunk_size * policy.action_dim), dtype=np.float32)


def _move_adapters(policy) -> None:
    with torch.no_grad():
        for name, parameter in policy.trainable_module().named_parameters():
            if "lora_B" in name:
                parameter.copy_(0.02 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(3)))


def _evaluate(policy, observation, token_ids: np.ndarray) -> Tensor:
    return policy.evaluate(observation, {"token_ids": torch.from_numpy(token_ids)}, temperature=1.6)["logprobs"]


@pytest.mark.parametrize("device", _DEVICES)
@pytest.mark.parametrize("lora_layers", ["all", "language"])
@pytest.mark.parametrize("base_dtype", _KINDS)
def test_sampling_and_training_compute_the_same_log_probs_with_adapters_that_have_moved(
    make_policy, make_observation, base_dtype, lora_layers, device
):
    options = {"compile": True} if device == "cuda" else {}
    policy = make_policy(
        device=device, dtype="bfloat16", lora_rank=4, lora_layers=lora_layers, base_dtype=base_dtype, **options
    )
    _move_adapters(policy)
    observation, uniforms = make_observation(12), _uniforms(policy, 12)
    for _ in range(4 if device == "cuda" else 1):  # the last from a CUDA graph
        output = policy.act(observation, uniforms=uniforms, temperature=1.6)
    few = type(observation)(arrays={"image": observation["image"][:3]}, instructions=observation.instructions[:3])
    for _ in range(4 if device == "cuda" else 1):
        logprobs = _evaluate(policy, few, output.decision["token_ids"][:3])
        logprobs.sum().backward()
        logprobs = logprobs.detach()  # nothing of a call may be left when a graph is captured
    gap = np.abs(logprobs.cpu().numpy() - output.decision["logprobs"][:3])
    assert gap.mean() < (1e-3 if device == "cuda" else 1e-6)


@pytest.mark.parametrize("base_dtype", ["fp8", "nf4"])
def test_a_quantised_policy_stays_near_the_exact_one_and_learns_the_same_way(make_policy, make_observation, base_dtype):
    exact, quantised = (make_policy(lora_rank=4, base_dtype=kind) for kind in ("auto", base_dtype))
    observation = make_observation(4)
    token_ids = exact.act(observation, uniforms=_uniforms(exact, 4), temperature=1.6).decision["token_ids"]
    gradients = []
    for policy in (exact, quantised):
        _move_adapters(policy)
        logprobs = _evaluate(policy, observation, token_ids)
        logprobs.sum().backward()
        named = policy.trainable_module().named_parameters()
        gradients.append((logprobs.detach(), torch.cat([p.grad.flatten() for _, p in named if p.grad is not None])))
    (logprobs, gradient), (other_logprobs, other_gradient) = gradients
    assert 0 < (other_logprobs - logprobs).abs().mean() < {"fp8": 0.02, "nf4": 0.05}[base_dtype]
    assert torch.cosine_similarity(gradient, other_gradient, dim=0) > {"fp8": 0.98, "nf4": 0.85}[base_dtype]
    assert 0.8 < other_gradient.norm() / gradient.norm() < 1.25


@pytest.mark.parametrize("base_dtype", ["fp8", "nf4"])
def test_only_adapters_train_on_a_quantised_base_and_their_changes_are_seen(make_policy, make_observation, base_dtype):
    policy, observation = make_policy(lora_rank=4, base_dtype=base_dtype), make_observation(2)
    before = policy.act(observation, uniforms=None, temperature=1.0).decision["logprobs"]
    trained = {name for name, parameter in policy.trainable_module().named_parameters() if parameter.requires_grad}
    assert trained
    assert all(".lora_" in name for name in trained)
    _move_adapters(policy)
    assert not np.array_equal(policy.act(observation, uniforms=None, temperature=1.0).decision["logprobs"], before)


def test_pushed_adapters_are_seen(make_policy, make_observation):
    source, target, observation = (
        make_policy(base_dtype="fp8", lora_rank=2),
        make_policy(base_dtype="fp8", lora_rank=2),
        make_observation(2),
    )
    target.act(observation, uniforms=None, temperature=1.0)
    _move_adapters(source)
    target.load_weights(dict(source.trainable_module().named_parameters()), version=1)
    outputs = [policy.act(observation, uniforms=None, temperature=1.0).decision["logprobs"] for policy in (source, target)]
    assert np.array_equal(*outputs)


@pytest.mark.parametrize("base_dtype", ["fp8", "nf4"])
def test_saving_merges_adapters_into_what_the_quantised_base_stands_for(make_policy, make_observation, tmp_path, base_dtype):
    policy, observation = make_policy(base_dtype=base_dtype, lora_rank=4), make_observation(4)
    _move_adapters(policy)
    policy.save_pretrained(str(tmp_path))
    merged = make_policy(checkpoint=str(tmp_path))
    token_ids = policy.act(observation, uniforms=None, temperature=1.0).decision["token_ids"]
    difference = (_evaluate(merged, observation, token_ids) - _evaluate(policy, observation, token_ids)).abs()
    assert difference.mean() < {"fp8": 0.02, "nf4": 1e-4}[base_dtype]  # FP8 also rounds inputs, which the export does not


def test_a_layer_too_odd_for_the_matrix_units_is_refused_by_name():
    config = named_config("tiny", num_text_tokens=300, prompt_end_token_id=3, chunk_size=3, action_dim=2)
    odd = replace(config, language=replace(config.language, intermediate_size=500))
    model = SimpleVLAOFT.from_random(odd, seed=0, dtype=torch.float32, device="cpu")
    with pytest.raises(ValueError, match=r"fp8: mlp\.gate_up_proj: .*multiples of 16, got 192 to 1000"):
        quantise_base(model.language_model.model, "fp8")
    with pytest.raises(ValueError, match=r"nf4: mlp\.down_proj: .*multiple of 64, got 500"):
        quantise_base(SimpleVLAOFT.from_random(odd, seed=0, dtype=torch.float32, device="cpu").language_model.model, "nf4")


def test_a_machine_without_bitsandbytes_is_told_which_extra_has_it(make_policy, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "bitsandbytes", None)
    with pytest.raises(ImportError, match=r"nf4 needs bitsandbytes: pip install 'vla-train\[nf4\]'"):
        make_policy(base_dtype="nf4", lora_rank=2)
