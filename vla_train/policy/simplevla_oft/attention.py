"""Attention of all three transformers, and the one thing about it that depends on the machine.

On a CPU attention is computed in float32 whatever it is given: the backward pass of bfloat16 attention there takes as long as
all else together, while matrices of bfloat16 are multiplied twice as fast as those of float32.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """Scaled dot-product attention of queries (B, H, T, D) over keys and values (B, H, S, D), in their dtype.

    Args:
        mask: Bool, broadcast to (B, H, T, S): which keys are seen; None sees all.
    """
    if q.device.type != "cpu":
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    with torch.autocast("cpu", enabled=False):
        return F.scaled_dot_product_attention(q.float(), k.float(), v.float(), attn_mask=mask).to(q.dtype)
