"""A GPU used as if it were a smaller one."""

import pytest
import torch

from vla_train import gpu_memory
from vla_train.gpu_memory import limit_memory, renew_limit


def test_simulators_that_begin_to_draw_after_the_policy_was_made_count_within_the_limit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    gigabyte, gpu = 10**9, torch.device("cuda", 3)
    in_use = {"simulators": 0, "cuda": gigabyte // 2, "torch": 0}
    allowed = {}
    monkeypatch.setattr(gpu_memory, "_limits", {})
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda index: (100 * gigabyte - sum(in_use.values()), 100 * gigabyte))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda index: in_use["torch"])
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", lambda share, index: allowed.update({index: share}))

    renew_limit(gpu)
    assert not allowed, "a GPU without a limit"
    limit_memory(48, gpu)
    assert allowed == {3: pytest.approx(0.465)}, "CUDA's libraries are yet to come"
    in_use |= {"simulators": 9 * gigabyte, "cuda": gigabyte, "torch": 20 * gigabyte}
    renew_limit(gpu)
    assert allowed == {3: pytest.approx(0.38)}
    in_use["simulators"] = 60 * gigabyte
    renew_limit(gpu)
    assert allowed == {3: 0.0}
    with pytest.raises(ValueError, match=r"policy.gpu_memory_gb 48: simulators and CUDA take 62.0 GB already"):
        limit_memory(48, gpu)
