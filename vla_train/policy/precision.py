"""Which device and precision `auto` stands for on this machine."""

import torch

from vla_train.config import PolicyConfig


def chosen_device(config: PolicyConfig) -> torch.device:
    """Where the model runs: a GPU where there is one, unless told otherwise."""
    if config.device != "auto":
        return torch.device(config.device)
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def chosen_dtype(config: PolicyConfig) -> torch.dtype:
    """What the model computes in: bfloat16 on GPUs, and on CPUs that have instructions for it; float32 on others."""
    if config.dtype != "auto":
        return torch.bfloat16 if config.dtype == "bfloat16" else torch.float32
    if chosen_device(config).type == "cuda" or cpu_multiplies_bfloat16():
        return torch.bfloat16
    return torch.float32


def cpu_multiplies_bfloat16() -> bool:
    """Whether the CPU multiplies matrices of bfloat16 faster than those of float32 (AVX-512 BF16, AMX)."""
    found = torch.cpu.get_capabilities()
    return bool(found.get("avx512_bf16") or found.get("amx_bf16"))
