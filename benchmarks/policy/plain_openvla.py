"""OpenVLA-OFT from stock transformers classes, run as its reference runs it: the baseline of both benchmarks here.

Both towers whole, every prompt padded to the longest, no causal mask, the language model's head over all positions.
"""

import torch
from torch import Tensor, nn
from transformers import (
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    LlamaConfig,
    LlamaForCausalLM,
    SiglipVisionConfig,
    SiglipVisionModel,
)

PATCHES, ACTION_TOKENS, FIRST_ACTION_ID, BINS = 256, 56, 31744, 256


class PlainOpenVLA(nn.Module):
    """The published 7B shape, or with `tiny` a toy of it; random weights are as good as any for timing."""

    def __init__(self, *, tiny: bool) -> None:
        super().__init__()
        size = 224
        dino = (
            dict(hidden_size=64, num_hidden_layers=2, num_attention_heads=2)
            if tiny
            else dict(hidden_size=1024, num_hidden_layers=24, num_attention_heads=16)
        )
        siglip = (
            dict(hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2)
            if tiny
            else dict(hidden_size=1152, intermediate_size=4304, num_hidden_layers=27, num_attention_heads=16)
        )
        llama = (
            dict(hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2)
            if tiny
            else dict(hidden_size=4096, intermediate_size=11008, num_hidden_layers=32, num_attention_heads=32)
        )
        self.dino = Dinov2WithRegistersModel(Dinov2WithRegistersConfig(image_size=size, patch_size=14, **dino))
        self.siglip = SiglipVisionModel(SiglipVisionConfig(image_size=size, patch_size=14, **siglip))
        width, out = dino["hidden_size"] + siglip["hidden_size"], llama["hidden_size"]
        self.projector = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, out), nn.GELU(), nn.Linear(out, out)
        )
        self.language_model = LlamaForCausalLM(LlamaConfig(vocab_size=32064, attn_implementation="sdpa", **llama))

    def forward(self, pixels: Tensor, prompt_ids: Tensor) -> Tensor:
        """(B, 6, 224, 224) and (B, L) to action logits (B, 56, 256)."""
        dino = self.dino(pixels[:, :3]).last_hidden_state[:, 5:]
        siglip = self.siglip(pixels[:, 3:]).last_hidden_state
        patches = self.projector(torch.cat([dino, siglip], dim=-1))
        embed = self.language_model.get_input_embeddings()
        prompt = embed(prompt_ids)
        zeros = torch.zeros(len(prompt), ACTION_TOKENS + 1, prompt.shape[-1], dtype=prompt.dtype, device=prompt.device)
        x = torch.cat([prompt[:, :1], patches, prompt[:, 1:], zeros], dim=1)
        everything = torch.zeros(len(x), 1, x.shape[1], x.shape[1], dtype=x.dtype, device=x.device)
        logits = self.language_model(inputs_embeds=x, attention_mask=everything).logits
        start = PATCHES + prompt_ids.shape[1] - 1
        return logits[:, start : start + ACTION_TOKENS, FIRST_ACTION_ID : FIRST_ACTION_ID + BINS]


def build_plain(*, tiny: bool, device: str, dtype: torch.dtype) -> PlainOpenVLA:
    """The model with random weights, made on its device."""
    with torch.device("meta"):
        model = PlainOpenVLA(tiny=tiny)
    model = model.to(dtype).to_empty(device=device)
    with torch.no_grad():
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if tensor.is_floating_point():
                tensor.fill_(1.0) if "norm" in name and name.endswith("weight") else tensor.normal_(std=0.02)
            else:
                tensor.copy_(torch.arange(tensor.numel(), device=device).reshape(tensor.shape))
    rotary = model.language_model.model.rotary_emb
    frequencies, _ = rotary.compute_default_rope_parameters(model.language_model.config, device=device)
    rotary.inv_freq.copy_(frequencies)
    return model
