"""The language model against transformers' own Llama, run whole: every layer and the head over all positions of one unpadded
row at a time, its causal mask switched off. What must agree: which positions predict, what is zeroed, what is left out."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from vla_train.policy.simplevla_oft import SimpleVLAOFT, named_config


def _stock_llama(model: SimpleVLAOFT, folder: Path) -> LlamaForCausalLM:
    """With the weights of the model's checkpoint, under their published names."""
    model.save_pretrained(folder)
    language = model.config.language
    llama = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=language.vocab_size,
            hidden_size=language.hidden_size,
            intermediate_size=language.intermediate_size,
            num_hidden_layers=language.num_layers,
            num_attention_heads=language.num_heads,
            rms_norm_eps=language.rms_norm_eps,
            tie_word_embeddings=False,
            attn_implementation="eager",
        )
    )
    prefix = "language_model."
    weights = load_file(folder / "model.safetensors")
    llama.load_state_dict({key.removeprefix(prefix): value for key, value in weights.items() if key.startswith(prefix)})
    return llama.eval()


def _whole_logits(llama: LlamaForCausalLM, model: SimpleVLAOFT, patches: Tensor, prompt: Tensor) -> Tensor:
    """Action logits (T, bins) of one row, given its patches (P, D) and unpadded prompt (L,)."""
    config, embed = model.config, llama.get_input_embeddings()
    placeholders = torch.zeros(config.num_action_tokens, patches.shape[1])
    stop = embed(torch.tensor([config.stop_token_id]))
    x = torch.cat([embed(prompt[:1]), patches, embed(prompt[1:]), placeholders, stop])[None]
    nothing_hidden = torch.zeros(1, 1, x.shape[1], x.shape[1])
    logits = llama(inputs_embeds=x, attention_mask=nothing_hidden, use_cache=False).logits[0]
    start = len(patches) + len(prompt) - 1
    return logits[start : start + config.num_action_tokens, config.first_action_id : config.first_action_id + config.num_bins]


@pytest.fixture(params=["golden", "random"])
def model(request, golden_model) -> SimpleVLAOFT:
    if request.param == "golden":
        return golden_model
    config = named_config("tiny", num_text_tokens=300, prompt_end_token_id=3, chunk_size=3, action_dim=2)
    return SimpleVLAOFT.from_random(config, seed=0, dtype=torch.float32, device="cpu")


@torch.no_grad()
def test_logits_of_a_mixed_batch_are_those_of_stock_llama_row_by_row(model, tmp_path):
    llama = _stock_llama(model, tmp_path)
    generator = torch.Generator().manual_seed(0)
    lengths = (9, 2, 14)
    ids = torch.randint(3, 290, (len(lengths), max(lengths)), generator=generator)
    ids[:, 0] = model.config.bos_token_id
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    patches = torch.randn(len(lengths), model.config.num_patches, model.config.language.hidden_size, generator=generator)
    hidden = model.action_hidden(patches, ids, mask)
    logits = hidden @ model.language_model.lm_head.weight[model.config.first_action_id :][: model.config.num_bins].T
    whole = [_whole_logits(llama, model, patches[i], ids[i, :length]) for i, length in enumerate(lengths)]
    torch.testing.assert_close(logits, torch.stack(whole), atol=1e-4, rtol=0)
