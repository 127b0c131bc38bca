"""The vision tower: a plain ViT with the parameter names of timm, as the published checkpoints have them.

The feature is the output of the second-to-last block without a final norm. The last block, the norm and the attention pool
are parameters that a checkpoint holds and nothing uses; they are kept, frozen, so that saving gives the checkpoint back.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vla_train.policy.simplevla_oft.attention import attend
from vla_train.policy.simplevla_oft.config import TowerConfig

_EPS = 1e-6


class Attention(nn.Module):
    """Multi-head self-attention over (B, N, width)."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        return self.proj(attend(q, k, v).transpose(1, 2).flatten(2))


class MLP(nn.Module):
    """Two layers with an exact GELU between."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class LayerScale(nn.Module):
    """A learned factor per channel."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.scale_factor = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale_factor


class Block(nn.Module):
    """Pre-norm transformer block over (B, N, width)."""

    def __init__(self, config: TowerConfig) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(config.width, eps=_EPS)
        self.attn = Attention(config.width, config.num_heads)
        self.ls1 = LayerScale(config.width) if config.layer_scale else nn.Identity()
        self.norm2 = nn.LayerNorm(config.width, eps=_EPS)
        self.mlp = MLP(config.width, config.mlp_width)
        self.ls2 = LayerScale(config.width) if config.layer_scale else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.ls1(self.attn(self.norm1(x)))
        return x + self.ls2(self.mlp(self.norm2(x)))


class PatchEmbed(nn.Module):
    """Non-overlapping patches, each mapped linearly: (B, 3, H, W) to (B, P, width)."""

    def __init__(self, config: TowerConfig) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, config.width, config.patch_size, stride=config.patch_size)

    def forward(self, pixels: Tensor) -> Tensor:
        return self.proj(pixels).flatten(2).transpose(1, 2)


class StoredAttentionPool(nn.Module):
    """Parameters of SigLIP's attention pool: stored, never run."""

    def __init__(self, config: TowerConfig) -> None:
        super().__init__()
        self.latent = nn.Parameter(torch.zeros(1, 1, config.width))
        self.q = nn.Linear(config.width, config.width)
        self.kv = nn.Linear(config.width, 2 * config.width)
        self.proj = nn.Linear(config.width, config.width)
        self.norm = nn.LayerNorm(config.width, eps=_EPS)
        self.mlp = MLP(config.width, config.mlp_width)


class VisionTower(nn.Module):
    """(B, 3, H, W) to patch features (B, P, width)."""

    def __init__(self, config: TowerConfig, image_size: int) -> None:
        super().__init__()
        self.num_prefix_tokens = config.num_prefix_tokens
        self.patch_embed = PatchEmbed(config)
        self.pos_embed = nn.Parameter(torch.zeros(1, (image_size // config.patch_size) ** 2, config.width))
        self.cls_token = nn.Parameter(torch.zeros(1, 1, config.width)) if config.class_token else None
        self.reg_token = nn.Parameter(torch.zeros(1, config.num_registers, config.width)) if config.num_registers else None
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.norm = nn.LayerNorm(config.width, eps=_EPS)
        self.attn_pool = None if config.class_token else StoredAttentionPool(config)

    @property
    def used_blocks(self) -> list[nn.Module]:
        return list(self.blocks)[:-1]

    @property
    def unused_modules(self) -> list[nn.Module]:
        """Stored only: no gradient, no adapters."""
        return [self.blocks[-1], self.norm] + ([self.attn_pool] if self.attn_pool is not None else [])

    def embed(self, pixels: Tensor) -> Tensor:
        """Tokens before the first block: CLS, registers, patches with their positions."""
        x = self.patch_embed(pixels) + self.pos_embed
        prefix = [token.expand(len(x), -1, -1) for token in (self.cls_token, self.reg_token) if token is not None]
        return torch.cat([*prefix, x], dim=1) if prefix else x.contiguous()
