"""Generation speed of SimpleVLA-OFT against the plain forward of the same shape, in the same run.

    python benchmarks/policy/bench_generation.py                          # 7B on a GPU, about 5 minutes
    python benchmarks/policy/bench_generation.py --size tiny --device cpu --batches 2

The plain forward is stock transformers (see plain_openvla.py) with 346 positions, given its pixels ready on the device. Ours
is all of `TorchPolicy.act`: uint8 images from the host, preprocessing, sampling, log-probs, and the actions back.
"""

import argparse
import gc
import json
import time
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from plain_openvla import ACTION_TOKENS, PATCHES, build_plain

from vla_train.config import PolicyConfig
from vla_train.policy.torch_policy import build_policy
from vla_train.types import Observation

CEILING = 790e12
"""bf16 matrix products on an H200, FLOP/s, as measured."""
PLAIN_POSITIONS = 346
_7B_LAYER_WEIGHTS = 32 * (4 * 4096 * 4096 + 3 * 4096 * 11008)
INSTRUCTION = "pick up the black bowl between the plate and the ramekin and place it on the plate"


def model_flops(positions: int) -> float:
    """Floating-point operations of one forward at the 7B shape: matrix products of all three parts, and attention."""
    language = 2.0 * _7B_LAYER_WEIGHTS * positions + 32 * 4.0 * positions**2 * 4096
    towers = 2.0 * (23 * 12 * 1024**2 * 261 + 26 * (4 * 1152**2 + 2 * 1152 * 4304) * 256)
    projector = 2.0 * 256 * (2176 * 8704 + 8704 * 4096 + 4096 * 4096)
    return language + towers + projector


def seconds_per_call(call: Callable[[], object], seconds: float) -> float:
    """Median over calls."""
    for _ in range(3):
        call()
    times: list[float] = []
    while sum(times) < seconds or len(times) < 3:
        _wait()
        start = time.perf_counter()
        call()
        _wait()
        times.append(time.perf_counter() - start)
    return float(np.median(times))


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def show(record: dict[str, object]) -> None:
    """One JSON line."""
    rounded = {key: round(value, 4) if isinstance(value, float) else value for key, value in record.items()}
    print(json.dumps(rounded), flush=True)


def time_plain(arguments: argparse.Namespace) -> dict[int, float]:
    """Chunks per second of the plain forward, by batch."""
    device = arguments.device
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    plain = build_plain(tiny=arguments.size == "tiny", device=device, dtype=dtype)
    prompt = torch.randint(1, 30000, (1, PLAIN_POSITIONS - PATCHES - ACTION_TOKENS - 1), device=device)
    rates: dict[int, float] = {}
    for batch in arguments.batches:
        pixels = torch.randn(batch, 6, 224, 224, device=device, dtype=dtype)
        with torch.no_grad():
            taken = seconds_per_call(partial(plain, pixels, prompt.expand(batch, -1)), arguments.seconds)
        rates[batch] = batch / taken
        of_ceiling = rates[batch] * model_flops(PLAIN_POSITIONS) / CEILING
        show({"what": "plain", "batch": batch, "ms": taken * 1e3, "chunks_per_s": rates[batch], "of_ceiling": of_ceiling})
    return rates


def time_policy(arguments: argparse.Namespace, plain_rates: dict[int, float], *, compiled: bool) -> None:
    """`TorchPolicy.act`, by batch."""
    random = np.random.default_rng(0)
    low, high = np.full(7, -1.0, np.float32), np.ones(7, np.float32)
    config = PolicyConfig(size=arguments.size, device=arguments.device, compile=compiled)
    policy = build_policy(config, action_low=low, action_high=high, suite=None, seed=0)
    positions = PATCHES + ACTION_TOKENS + 1 + policy._prompt_tensors((INSTRUCTION,))[0].shape[1]
    for batch in arguments.batches:
        images = random.integers(0, 256, (batch, 256, 256, 3), np.uint8)
        observation = Observation(images=images, instructions=(INSTRUCTION,) * batch)
        act = partial(policy.act, observation, uniforms=random.random((batch, ACTION_TOKENS), np.float32), temperature=1.6)
        start = time.perf_counter()
        act()
        first = time.perf_counter() - start
        taken = seconds_per_call(act, arguments.seconds)
        show(
            {
                "what": "ours, compiled" if compiled else "ours, eager",
                "batch": batch,
                "positions": positions,
                "ms": taken * 1e3,
                "chunks_per_s": batch / taken,
                "of_plain": batch / taken / plain_rates[batch],
                "of_ceiling": batch / taken * model_flops(positions) / CEILING,
                "first_call_s": first,
            }
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=("tiny", "openvla-7b"), default="openvla-7b")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8, 16, 32, 64, 128])
    parser.add_argument("--seconds", type=float, default=3.0, help="per measurement")
    arguments = parser.parse_args()
    plain_rates = time_plain(arguments)
    for compiled in (False, True) if arguments.device == "cuda" else (False,):
        gc.collect()
        if arguments.device == "cuda":
            torch.cuda.empty_cache()
        time_policy(arguments, plain_rates, compiled=compiled)


if __name__ == "__main__":
    main()
