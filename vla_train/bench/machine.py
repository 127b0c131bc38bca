"""What a machine has: cores, a GPU, and how much of the GPU's memory is held, as its driver sees it."""

import os
from dataclasses import dataclass

import torch


@dataclass(frozen=True, kw_only=True, slots=True)
class Machine:
    """Where the policy runs."""

    cores: int
    """That this process may use."""
    gpu: str | None
    """Name; None where the policy runs on the CPU."""
    gpu_gb: float = 0.0
    """All of its memory, in 10^9 bytes."""
    capability: tuple[int, int] = (0, 0)
    """Compute capability."""


def machine_of(device: torch.device) -> Machine:
    """The machine, with the GPU that a policy runs on."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if device.type != "cuda":
        return Machine(cores=cores, gpu=None)
    properties = torch.cuda.get_device_properties(device)
    return Machine(
        cores=cores,
        gpu=properties.name,
        gpu_gb=properties.total_memory / 1e9,
        capability=(properties.major, properties.minor),
    )


def held_gb(device: torch.device) -> float:
    """GPU memory that all programs hold together, in 10^9 bytes: pictures and other processes count."""
    free, total = torch.cuda.mem_get_info(device)
    return (total - free) / 1e9


def peak_gb(device: torch.device) -> float:
    """The most that was held since the start: what is held now, and what PyTorch has given back since its own peak."""
    returned = torch.cuda.max_memory_reserved(device) - torch.cuda.memory_reserved(device)
    return held_gb(device) + returned / 1e9
