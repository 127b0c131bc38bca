"""A GPU used as if it were a smaller one (`policy.gpu_memory_gb`): PyTorch leaves free what goes beyond.

Invariant: all that uses the GPU counts, simulators in other processes too.
"""

import torch

_CUDA_BYTES = 1_000_000_000
"""What kernels, graphs and libraries take of a GPU beside PyTorch's own memory, once all are loaded."""
_limits: dict[int, float] = {}
"""By GPU, in 1e9 bytes."""


def limit_memory(gigabytes: float, device: torch.device) -> None:
    """Let PyTorch take no more of a GPU than leaves its use, simulators and CUDA itself included, below so many 1e9 bytes.

    What simulators take once they draw is counted by `renew_limit`.

    Raises:
        ValueError: So much is in use already.
    """
    index = _index(device)
    outside = _outside_bytes(index) + _CUDA_BYTES
    if gigabytes * 1e9 <= outside:
        raise ValueError(f"policy.gpu_memory_gb {gigabytes:g}: simulators and CUDA take {outside / 1e9:.1f} GB already")
    _limits[index] = gigabytes
    _allow(gigabytes * 1e9 - outside, index)


def renew_limit(device: torch.device) -> None:
    """Count again what else is on a GPU whose memory was limited: to be called when all that uses it has begun."""
    index = _index(device)
    if index in _limits:
        _allow(_limits[index] * 1e9 - _outside_bytes(index), index)


def _index(device: torch.device) -> int:
    return torch.cuda.current_device() if device.index is None else device.index


def _outside_bytes(index: int) -> int:
    """What is in use of a GPU, but for PyTorch's memory."""
    free, total = torch.cuda.mem_get_info(index)
    return total - free - torch.cuda.memory_reserved(index)


def _allow(num_bytes: float, index: int) -> None:
    total = torch.cuda.mem_get_info(index)[1]
    torch.cuda.set_per_process_memory_fraction(min(1.0, max(0.0, num_bytes / total)), index)
