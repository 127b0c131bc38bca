"""Which device and precision `auto` stands for on this machine, and in which order its products add up."""

from collections.abc import Iterator
from contextlib import contextmanager

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


def keep_sums_whole() -> None:
    """Let products of bfloat16 on GPUs add up in one order, however many rows they have. For the whole process.

    cuBLAS splits small and thin products along the sum, into more parts the fewer rows there are. A last bit that differs is
    nothing in itself, but dozens of layers amplify it: log-probs of sampling and of training, whose batches differ in size,
    would be 0.005 to 0.02 nats apart. PyTorch before 2.9 cannot be told.
    """
    matmul = torch.backends.cuda.matmul
    if torch.cuda.is_available() and hasattr(matmul, "allow_bf16_reduced_precision_reduction_split_k"):
        torch.backends.cuda.preferred_blas_library("cublaslt")
        matmul.allow_bf16_reduced_precision_reduction = (False, False)  # the second: no split


@contextmanager
def split_sums() -> Iterator[None]:
    """Let cuBLAS split sums meanwhile; in other threads too, whose log-probs may differ in their last bits then."""
    matmul = torch.backends.cuda.matmul
    if getattr(matmul, "allow_bf16_reduced_precision_reduction_split_k", True):
        yield
        return
    matmul.allow_bf16_reduced_precision_reduction = (True, True)
    try:
        yield
    finally:
        matmul.allow_bf16_reduced_precision_reduction = (False, False)
