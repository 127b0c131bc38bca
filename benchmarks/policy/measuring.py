"""What both benchmarks of the policy need: a clock, the device's own ceiling, the arithmetic of a forward, and a report."""

import gc
import json
import time
import traceback
from collections.abc import Callable
from typing import TypeVar

import numpy as np
import torch

from vla_train.policy.simplevla_oft import SimpleVLAOFTConfig

_Result = TypeVar("_Result")


class Report:
    """Prints records as JSON lines, and all of them again at the end; skips what memory or time is too short for.

    Args:
        budget_s: Nothing new is begun after this many seconds.
    """

    def __init__(self, budget_s: float) -> None:
        self.records: list[dict[str, object]] = []
        self._started = time.perf_counter()
        self._budget_s = budget_s

    def add(self, **record: object) -> None:
        """One record, with the most memory held since the last."""
        if torch.cuda.is_available():
            record["peak_gb"] = torch.cuda.max_memory_reserved() / 1e9
            torch.cuda.reset_peak_memory_stats()
        rounded = {key: float(f"{value:.4g}") if isinstance(value, float) else value for key, value in record.items()}
        self.records.append(rounded)
        print(f"[{time.perf_counter() - self._started:5.0f} s]", json.dumps(rounded), flush=True)

    def attempt(self, measure: Callable[[], _Result], **what: object) -> _Result | None:
        """Run a measurement that may not fit, or not run here: one line says so then, None is returned, and others go on."""
        try:
            if time.perf_counter() - self._started > self._budget_s:
                self.add(**what, skipped="out of time")
                return None
            return measure()
        except torch.OutOfMemoryError:
            self.add(**what, skipped="out of memory")
        except RuntimeError as error:
            traceback.print_exc()
            self.add(**what, skipped=f"{type(error).__name__}: {error}"[:200])
        finally:
            release_memory()
        return None

    def finish(self) -> None:
        """All records once more, without anything between."""
        print(f"=== results after {time.perf_counter() - self._started:.0f} s")
        for record in self.records:
            print(json.dumps(record))


def release_memory() -> None:
    """Give back what nothing refers to any more."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def wait() -> None:
    """Until the device has done all its work."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def seconds_per_call(call: Callable[[], object], seconds: float) -> float:
    """Median over calls, at least three, after three more: the policy makes its graphs in these."""
    for _ in range(3):
        call()
    times: list[float] = []
    while sum(times) < seconds or len(times) < 3:
        wait()
        start = time.perf_counter()
        call()
        wait()
        times.append(time.perf_counter() - start)
    return float(np.median(times))


def matrix_ceiling(device: str, dtype: torch.dtype) -> float:
    """FLOP/s of one large square matrix product: what no model can exceed here."""
    size = 8192 if device == "cuda" else 512
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    return 2 * size**3 / seconds_per_call(lambda: a @ b, 1.0)


def describe_device(device: str) -> str:
    """For the records: what it is, with which torch."""
    name = torch.cuda.get_device_name() if device == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    return f"{name}, torch {torch.__version__}"


def forward_flops(config: SimpleVLAOFTConfig, positions: int, *, whole: bool) -> float:
    """Floating-point operations of one row's forward: matrix products and attention, a multiplication and an addition each.

    Args:
        config: Shape of the model.
        positions: S of the language model.
        whole: All blocks and the head over all positions, as the plain forward runs; otherwise what an action needs.
    """
    language, tokens = config.language, config.num_action_tokens
    width = language.hidden_size
    mixing, mlp = 4 * width**2, 3 * width * language.intermediate_size
    layer = positions * (mixing + mlp) + 2 * positions**2 * width
    last = layer if whole else positions * 3 * width**2 + tokens * (width**2 + mlp + 2 * positions * width)
    head = positions * language.vocab_size * width if whole else tokens * config.num_bins * width
    total = (language.num_layers - 1) * layer + last + head
    for tower in config.towers:
        length = config.num_patches + tower.num_prefix_tokens
        block = length * (4 * tower.width**2 + 2 * tower.width * tower.mlp_width) + 2 * length**2 * tower.width
        total += (tower.depth if whole else tower.depth - 1) * block
        total += config.num_patches * 3 * tower.patch_size**2 * tower.width
    features = sum(tower.width for tower in config.towers)
    total += config.num_patches * (4 * features**2 + 4 * features * width + width**2)
    return 2.0 * total
