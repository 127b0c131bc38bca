"""Against the reference implementation's outputs for a tiny checkpoint."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from vla_train.policy.simplevla_oft import SimpleVLAOFT
from vla_train.policy.simplevla_oft.action_tokens import ActionCodec, ActionStatistics
from vla_train.policy.simplevla_oft.policy import action_logprobs

pytestmark = pytest.mark.filterwarnings("error")


@torch.no_grad()
def test_patch_features_are_the_second_to_last_blocks_of_both_towers(golden_model, golden_cases):
    features = golden_model.patch_features(golden_cases["pixel_values"])
    torch.testing.assert_close(features, golden_cases["patch_features"], atol=1e-4, rtol=0)
    torch.testing.assert_close(golden_model.projector(features), golden_cases["projected"], atol=1e-4, rtol=0)


@torch.no_grad()
def test_action_logits_and_greedy_tokens_equal_the_reference(golden_model, golden_cases):
    logits = golden_model.action_logits(*(golden_cases[name] for name in ("pixel_values", "input_ids", "attention_mask")))
    torch.testing.assert_close(logits, golden_cases["action_logits"], atol=1e-4, rtol=0)
    token_ids = logits.argmax(-1) + golden_model.config.first_action_id
    assert torch.equal(token_ids, golden_cases["greedy_token_ids"])


@pytest.mark.gpu
@torch.no_grad()
def test_action_logits_on_a_gpu_equal_the_reference(golden_folder, golden_cases):
    model = SimpleVLAOFT.from_pretrained(golden_folder, dtype=torch.float32, device="cuda")
    inputs = (golden_cases[name].cuda() for name in ("pixel_values", "input_ids", "attention_mask"))
    logits = model.action_logits(*inputs).cpu()
    torch.testing.assert_close(logits, golden_cases["action_logits"], atol=2e-4, rtol=0)
    assert torch.equal(logits.argmax(-1) + model.config.first_action_id, golden_cases["greedy_token_ids"])


@torch.no_grad()
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_logprobs_in_bfloat16_are_near_the_reference(golden_folder, golden_cases, device):
    model = SimpleVLAOFT.from_pretrained(golden_folder, dtype=torch.bfloat16, device=device)
    inputs = (golden_cases[name].to(device) for name in ("pixel_values", "input_ids", "attention_mask"))
    logprobs = action_logprobs(model.action_logits(*inputs), golden_cases["temperature"].to(device)).cpu()
    expected = action_logprobs(golden_cases["action_logits"], golden_cases["temperature"])
    assert logprobs.dtype == torch.float32
    difference = (logprobs - expected).abs()
    assert difference.mean() < 0.03 * expected.std()


@torch.no_grad()
def test_logprobs_and_entropy_equal_the_reference(golden_model, golden_cases):
    logits = golden_model.action_logits(*(golden_cases[name] for name in ("pixel_values", "input_ids", "attention_mask")))
    logprobs = action_logprobs(logits, golden_cases["temperature"])
    indices = golden_cases["greedy_token_ids"] - golden_model.config.first_action_id
    torch.testing.assert_close(logprobs.gather(-1, indices[..., None])[..., 0], golden_cases["logprobs"], atol=1e-4, rtol=0)
    torch.testing.assert_close(-(logprobs.exp() * logprobs).sum(-1), golden_cases["entropy"], atol=1e-4, rtol=0)


def test_actions_equal_the_reference(golden_folder, golden_model, golden_cases):
    name = "libero_spatial_no_noops"
    statistics = json.loads((golden_folder / "dataset_statistics.json").read_text())[name]
    codec = ActionCodec(
        statistics=ActionStatistics.from_json(statistics, name=name),
        gripper=None,
        chunk_size=8,
        vocab_end=golden_model.config.pad_token_id,
        num_bins=256,
    )
    actions = codec.decode(golden_cases["greedy_token_ids"].numpy())
    np.testing.assert_allclose(actions, golden_cases["actions"].numpy(), atol=1e-6)


@torch.no_grad()
@pytest.mark.parametrize("side", ["left", "right"])
def test_a_row_gives_alone_what_it_gives_beside_longer_and_shorter_prompts(golden_model, golden_cases, side):
    pixels, ids, mask = (golden_cases[name] for name in ("pixel_values", "input_ids", "attention_mask"))
    alone = [golden_model.action_logits(pixels[i : i + 1], ids[i : i + 1, mask[i].bool()]) for i in range(len(ids))]
    if side == "right":
        lengths = mask.sum(1).tolist()
        ids = torch.stack([row.roll(n) for row, n in zip(ids, lengths, strict=True)])
        mask = torch.stack([row.roll(n) for row, n in zip(mask, lengths, strict=True)])
        assert mask[:, 0].all()
    together = golden_model.action_logits(pixels, ids, mask)
    torch.testing.assert_close(together, torch.cat(alone), atol=1e-5, rtol=0)


@torch.no_grad()
def test_what_stands_in_the_padding_changes_nothing(golden_model, golden_cases):
    pixels, ids, mask = (golden_cases[name] for name in ("pixel_values", "input_ids", "attention_mask"))
    logits = golden_model.action_logits(pixels, ids, mask)
    garbage = torch.where(mask.bool(), ids, torch.full_like(ids, 77))
    torch.testing.assert_close(golden_model.action_logits(pixels, garbage, mask), logits, atol=0, rtol=0)


def test_saving_the_golden_checkpoint_gives_the_same_tensors_under_the_same_names(golden_folder, golden_model, tmp_path):
    golden_model.save_pretrained(tmp_path)
    before, after = load_file(golden_folder / "model.safetensors"), load_file(tmp_path / "model.safetensors")
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key].float(), after[key]) for key in before)
    old, new = (json.loads((folder / "config.json").read_text()) for folder in (golden_folder, tmp_path))
    text = new.pop("text_config")
    assert old.pop("text_config").items() <= text.items()
    assert old.items() <= new.items()
    again = SimpleVLAOFT.from_pretrained(tmp_path, dtype=torch.float32)
    assert again.config.norm_stats == golden_model.config.norm_stats
