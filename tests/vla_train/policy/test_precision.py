"""What `auto` stands for, and that bfloat16 on a CPU trains what it samples."""

import numpy as np
import pytest
import torch

from vla_train.config import PolicyConfig
from vla_train.policy import precision
from vla_train.policy.precision import chosen_device, chosen_dtype
from vla_train.policy.simplevla_oft.attention import attend


@pytest.mark.parametrize(("supported", "dtype"), [(True, torch.bfloat16), (False, torch.float32)])
def test_a_cpu_computes_in_bfloat16_where_it_has_instructions_for_it(
    supported: bool, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(precision, "cpu_multiplies_bfloat16", lambda: supported)
    assert chosen_dtype(PolicyConfig(device="cpu")) == dtype
    assert chosen_dtype(PolicyConfig(device="cpu", dtype="float32")) == torch.float32
    assert chosen_dtype(PolicyConfig(device="cuda")) == torch.bfloat16
    assert chosen_device(PolicyConfig(device="cuda")).type == "cuda"


@pytest.mark.parametrize("masked", [False, True])
def test_attention_on_a_cpu_is_that_of_float32_rounded_once(masked: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 3, 7, 32, generator=generator).bfloat16().requires_grad_() for _ in range(3))
    mask = torch.arange(7) < torch.tensor([7, 4])[:, None, None, None] if masked else None
    with torch.autocast("cpu", torch.bfloat16):
        ours = attend(q, k, v, mask)
    scores = q.float() @ k.float().transpose(-1, -2) / np.sqrt(32)
    weights = (scores if mask is None else scores.masked_fill(~mask, -torch.inf)).softmax(-1)
    assert ours.dtype == torch.bfloat16
    torch.testing.assert_close(ours, (weights @ v.float()).bfloat16(), rtol=1e-2, atol=1e-3)
    ours.float().sum().backward()
    assert q.grad is not None
