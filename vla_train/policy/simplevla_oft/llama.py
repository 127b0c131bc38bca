"""A Llama whose attention is bidirectional: every token sees every unpadded token.

There is no causal mask to forget or to switch off. Attention is handed either no mask at all, or which keys are padding.
Queries, keys and values are one matrix here, and so are gate and up projection: fewer, larger multiplications; checkpoints
hold them apart under their published names (see `checkpoint.py`).

B rows, S positions, D width, H heads, T positions whose output is wanted.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vla_train.policy.simplevla_oft.attention import attend
from vla_train.policy.simplevla_oft.config import LanguageConfig


def rotary_tables(num_positions: int, head_dim: int, theta: float, *, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Cosines and sines of the rotary embedding for positions 0..S-1: (2, S, head_dim), computed in float32."""
    exponents = torch.arange(0, head_dim, 2, device=device, dtype=torch.float32) / head_dim
    angles = torch.arange(num_positions, device=device, dtype=torch.float32)[:, None] / theta**exponents
    angles = torch.cat([angles, angles], dim=-1)
    return torch.stack([angles.cos(), angles.sin()]).to(dtype)


def rotate(x: Tensor, tables: Tensor) -> Tensor:
    """Rotate (B, H, S, head_dim) by tables (2, S, head_dim), or (2, B, 1, S, head_dim) where rows differ."""
    first, second = x.chunk(2, dim=-1)
    return x * tables[0] + torch.cat([-second, first], dim=-1) * tables[1]


class SelfAttention(nn.Module):
    """Bidirectional multi-head attention with rotary positions."""

    def __init__(self, config: LanguageConfig) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        self.qkv_proj = nn.Linear(config.hidden_size, 3 * config.hidden_size, bias=False)
        self.o_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor, tables: Tensor, mask: Tensor | None, positions: Tensor | None) -> Tensor:
        """(B, S, D) to (B, S, D), or (B, T, D) where `positions` (B, T) says whose output is wanted."""
        q, k, v = self.qkv_proj(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        query_tables = tables
        if positions is not None:
            q = q.gather(2, positions[:, None, :, None].expand(-1, q.shape[1], -1, q.shape[3]))
            query_tables = tables[:, positions][:, :, None]
        out = attend(rotate(q, query_tables), rotate(k, tables), v, mask)
        return self.o_proj(out.transpose(1, 2).flatten(2))


class GatedMLP(nn.Module):
    """silu(gate x) * (up x), projected down."""

    def __init__(self, config: LanguageConfig) -> None:
        super().__init__()
        self.gate_up_proj = nn.Linear(config.hidden_size, 2 * config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.gate_up_proj(x).chunk(2, dim=-1)
        return self.down_proj(F.silu(gate) * up)


class DecoderLayer(nn.Module):
    """Pre-norm attention and gated MLP."""

    def __init__(self, config: LanguageConfig) -> None:
        super().__init__()
        self.input_layernorm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.self_attn = SelfAttention(config)
        self.post_attention_layernorm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.mlp = GatedMLP(config)

    def forward(self, x: Tensor, tables: Tensor, mask: Tensor | None, positions: Tensor | None = None) -> Tensor:
        """One layer; with `positions` (B, T), only those positions' outputs (B, T, D), at their cost."""
        attended = self.self_attn(self.input_layernorm(x), tables, mask, positions)
        if positions is not None:
            x = x.gather(1, positions[..., None].expand(-1, -1, x.shape[-1]))
        x = x + attended
        return x + self.mlp(self.post_attention_layernorm(x))


class Llama(nn.Module):
    """Embedding, layers and final norm, under their published names."""

    def __init__(self, config: LanguageConfig) -> None:
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(DecoderLayer(config) for _ in range(config.num_layers))
        self.norm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)


class LanguageModel(nn.Module):
    """A Llama and its untied head."""

    def __init__(self, config: LanguageConfig) -> None:
        super().__init__()
        self.model = Llama(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
