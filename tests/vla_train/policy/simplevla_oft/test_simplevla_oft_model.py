import dataclasses
import threading

import pytest
import torch
from torch._dynamo.utils import counters

from vla_train.policy.simplevla_oft import SimpleVLAOFT, named_config
from vla_train.policy.simplevla_oft.config import PUBLISHED_TOWERS
from vla_train.policy.simplevla_oft.config_json import config_from_json, config_to_json
from vla_train.policy.simplevla_oft.lora import add_lora


def _inputs(model: SimpleVLAOFT, lengths: tuple[int, ...] = (9, 6)) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    size = model.config.image_size
    pixels = torch.randn(len(lengths), 6, size, size, generator=generator)
    ids = torch.randint(5, 200, (len(lengths), max(lengths)), generator=generator)
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    return pixels, ids, mask


@pytest.fixture(scope="module")
def model() -> SimpleVLAOFT:
    config = named_config("tiny", num_text_tokens=300, prompt_end_token_id=3, chunk_size=3, action_dim=2)
    return SimpleVLAOFT.from_random(config, seed=0, dtype=torch.float32, device="cpu")


@torch.no_grad()
@pytest.mark.parametrize("changed", ["last prompt token", "stop token"])
def test_attention_is_bidirectional_so_a_later_token_changes_an_earlier_hidden_state(golden_model, golden_cases, changed):
    pixels, ids = golden_cases["pixel_values"][1:2], golden_cases["input_ids"][1:2].clone()
    first_layer = golden_model.language_model.model.layers[0]
    hidden: list[torch.Tensor] = []
    hook = first_layer.register_forward_hook(lambda module, inputs, output: hidden.append(output))
    try:
        golden_model.action_logits(pixels, ids)
        if changed == "last prompt token":
            ids[0, -1] = 1234
            golden_model.action_logits(pixels, ids)
        else:
            stop = golden_model.config.stop_token_id
            embedding = golden_model.language_model.model.embed_tokens.weight
            kept = embedding[stop].clone()
            embedding[stop] += 1
            golden_model.action_logits(pixels, ids)
            embedding[stop] = kept
    finally:
        hook.remove()
    before, after = hidden
    assert (before[0, 0] - after[0, 0]).abs().max() > 1e-5, "BOS, the first position, does not see a later token: causal"
    assert (before[0, 1:17] - after[0, 1:17]).abs().amax(-1).min() > 1e-5, "a patch does not see a later token: causal"


@torch.no_grad()
def test_the_last_action_token_looks_at_the_image_and_the_first_at_the_prompts_end(model):
    pixels, ids, mask = _inputs(model)
    logits = model(pixels, ids, mask)
    assert (model(pixels + 1, ids, mask) - logits).abs().amax(-1).min() > 0
    ids[:, 4] += 1
    assert (model(pixels, ids, mask) - logits).abs().amax(-1).min() > 0


def test_the_sequence_is_prompt_then_zeroed_placeholders_then_stop_then_padding(model):
    config = model.config
    ids = torch.tensor([[config.pad_token_id, 1, 7, 3], [1, 8, 9, 3]])
    sequence = model.token_sequence(ids, ids != config.pad_token_id)
    zeros = [config.placeholder_token_id] * 6
    assert sequence.token_ids.tolist() == [
        [1, 7, 3, *zeros, config.stop_token_id, config.pad_token_id],
        [1, 8, 9, 3, *zeros, config.stop_token_id],
    ]
    assert sequence.is_placeholder.sum(1).tolist() == [6, 6]
    assert sequence.lengths.tolist() == [3, 4]


@torch.no_grad()
def test_placeholders_enter_as_zeros_and_the_stop_token_as_itself(model):
    pixels, ids, mask = _inputs(model)
    inputs: list[torch.Tensor] = []
    hook = model.language_model.model.layers[0].register_forward_pre_hook(lambda _, arguments: inputs.append(arguments[0]))
    model(pixels, ids, mask)
    hook.remove()
    embedding, config = model.language_model.model.embed_tokens.weight, model.config
    for row, prompt, length in zip(inputs[0], ids, mask.sum(1).tolist(), strict=True):
        start = config.num_patches + length
        end = start + config.num_action_tokens
        assert (row[start:end] == 0).all()
        assert torch.equal(row[end], embedding[config.stop_token_id])
        assert torch.equal(row[start - 1], embedding[prompt[length - 1]])
        assert torch.equal(row[0], embedding[prompt[0]])


def test_activation_checkpointing_changes_neither_loss_nor_gradients(model):
    pixels, ids, mask = _inputs(model)
    gradients = []
    for share in (0.0, 0.5, 1.0):
        model.recompute(share)
        model.zero_grad()
        model(pixels, ids, mask).square().sum().backward()
        gradients.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})
    model.recompute(0.0)
    for others in gradients[1:]:
        assert gradients[0].keys() == others.keys()
        for name, gradient in gradients[0].items():
            torch.testing.assert_close(others[name], gradient, msg=name)


def test_every_trainable_weight_gets_a_gradient_and_only_unused_ones_are_frozen(model):
    model.zero_grad()
    model(*_inputs(model)).square().sum().backward()
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    assert {name.rsplit(".", 3)[0] for name in frozen if "attn_pool" in name}
    assert all(("blocks.3" in name or "attn_pool" in name or "featurizer.norm" in name) for name in frozen)
    assert all((parameter.grad is not None) == (name not in frozen) for name, parameter in model.named_parameters())


def test_adapters_start_without_effect_and_train_alone(model):
    config = dataclasses.replace(model.config)
    adapted = SimpleVLAOFT.from_random(config, seed=0, dtype=torch.float32, device="cpu")
    inputs = _inputs(model)
    linears = set(adapted.adaptable_layers("all"))
    add_lora(adapted, 4, layers=adapted.adaptable_layers("all"), seed=1)
    torch.testing.assert_close(adapted(*inputs), model(*inputs))
    adapted(*inputs).square().sum().backward()
    trained = {name for name, parameter in adapted.named_parameters() if parameter.requires_grad}
    assert trained == {f"{name}.lora_{side}" for name in linears for side in "AB"}
    assert all(parameter.grad is not None for name, parameter in adapted.named_parameters() if name in trained)


def _traced(model: SimpleVLAOFT, lora_rank: int = 0) -> SimpleVLAOFT:
    """A copy whose blocks run as compiled ones do, but for the last step, code generation."""
    copy = SimpleVLAOFT.from_random(model.config, seed=0, dtype=torch.float32, device="cpu")
    if lora_rank:
        add_lora(copy, lora_rank, layers=copy.adaptable_layers("all"), seed=1)
    copy.compile_blocks(backend="aot_eager")
    return copy


def test_compiled_blocks_give_the_same_logits(model):
    compiled, inputs = _traced(model), _inputs(model)
    with torch.no_grad():
        torch.testing.assert_close(compiled(*inputs), model(*inputs))


@pytest.mark.slow
def test_compiled_blocks_with_adapters_and_checkpointing_give_the_same_gradients(model):
    plain, compiled = SimpleVLAOFT.from_random(model.config, seed=0, dtype=torch.float32, device="cpu"), _traced(model, 2)
    add_lora(plain, 2, layers=plain.adaptable_layers("all"), seed=1)
    for adapted in (plain, compiled):
        adapted.recompute(float(adapted is compiled))
        adapted(*_inputs(model)).square().sum().backward()
    for (name, expected), (_, parameter) in zip(plain.named_parameters(), compiled.named_parameters(), strict=True):
        if expected.grad is not None:
            torch.testing.assert_close(parameter.grad, expected.grad, msg=name)


def test_blocks_compile_whole_once_a_kind_and_not_again_for_other_sizes(model):
    torch._dynamo.reset()
    counters.clear()
    compiled = SimpleVLAOFT.from_random(model.config, seed=0, dtype=torch.float32, device="cpu")
    compiled.compile_blocks(backend="eager")
    numbers = []
    with torch.no_grad():
        for lengths in ((9, 6), (9, 6, 4), (15, 2, 3, 7, 8)):
            compiled(*_inputs(model, lengths))
            numbers.append(counters["stats"]["unique_graphs"])
    towers, layers = 2, 2
    assert numbers == [towers + layers] * 3
    assert not counters["graph_break"]


@torch.no_grad()
def test_compiling_leaves_room_for_all_variants_of_a_block_in_whichever_thread_it_runs(model):
    kinds_of_block, row_counts, masks, gradients = 2, 2, 2, 2
    compiled = SimpleVLAOFT.from_random(model.config, seed=0, dtype=torch.float32, device="cpu")
    compiled.compile_blocks(backend="eager")
    limits = []

    def run() -> None:
        with torch._dynamo.config.patch(recompile_limit=8):
            compiled(*_inputs(model))
            limits.append(torch._dynamo.config.recompile_limit)

    run()
    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert len(limits) == 2
    assert min(limits) >= kinds_of_block * row_counts * masks * gradients


def test_random_weights_depend_on_the_seed_alone_and_start_near_the_uniform_policy(model):
    again, other = (SimpleVLAOFT.from_random(model.config, seed=s, dtype=torch.float32, device="cpu") for s in (0, 1))
    inputs = _inputs(model)
    with torch.no_grad():
        logits = model(*inputs)
        assert torch.equal(again(*inputs), logits)
        assert not torch.equal(other(*inputs), logits)
    assert logits.isfinite().all()
    assert logits.std() < 1


def test_the_named_7b_size_is_the_published_shape():
    config = named_config("openvla-7b", num_text_tokens=1004, prompt_end_token_id=3, chunk_size=8, action_dim=7)
    assert config.towers == tuple(PUBLISHED_TOWERS.values())
    assert (config.language.vocab_size, config.pad_token_id, config.first_action_id) == (32064, 32000, 31744)
    assert (config.image_size, config.num_patches, config.num_action_tokens) == (224, 256, 56)
    with torch.device("meta"):
        model = SimpleVLAOFT(config)
    assert sum(parameter.numel() for parameter in model.parameters()) == pytest.approx(7.54e9, rel=0.01)
    assert model.projector.fc1.weight.shape == (8704, 2176)


def test_an_unknown_size_is_refused_by_name():
    with pytest.raises(ValueError, match=r"'huge'.*tiny, small, openvla-7b"):
        named_config("huge", num_text_tokens=10, prompt_end_token_id=3, chunk_size=8, action_dim=7)


@pytest.mark.parametrize("size", ["tiny", "small", "openvla-7b"])
def test_a_config_survives_its_json(size):
    config = named_config(size, num_text_tokens=400, prompt_end_token_id=3, chunk_size=5, action_dim=4)
    again = config_from_json(config_to_json(config))
    assert dataclasses.replace(again, published={}) == config


def test_a_published_config_that_names_little_means_llama_2():
    config = config_from_json(
        {
            "timm_model_ids": list(PUBLISHED_TOWERS),
            "image_sizes": [224, 224],
            "n_action_bins": 256,
            "pad_to_multiple_of": 64,
            "pad_token_id": 32000,
            "text_config": {"model_type": "llama", "pad_token_id": 32000, "torch_dtype": "bfloat16", "vocab_size": 32064},
        }
    )
    assert (config.language.hidden_size, config.language.intermediate_size, config.language.num_layers) == (4096, 11008, 32)
    assert (config.chunk_size, config.action_dim, config.prompt_end_token_id) == (8, 7, 29871)
