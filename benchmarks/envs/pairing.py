"""Two ways to do the same work, measured in turn, so that what else the machine does slows down both."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Rates:
    """Median units of work per second."""

    ours: float
    stock: float

    @property
    def ratio(self) -> float:
        return self.ours / self.stock


@dataclass(frozen=True, kw_only=True)
class Side:
    """One of the two ways."""

    work: Callable[[], int]
    """Does some work, and returns how many units."""
    prepare: Callable[[], object] = lambda: None
    """Called before each measurement, and not measured."""


def compare(
    benchmark: Any, claim: str, unit: str, *, ours: Side, stock: Side, rounds: int, baseline: str = "stock LIBERO"
) -> Rates:
    """Measure both, and print the ratio.

    Args:
        benchmark: pytest-benchmark's fixture; it times `ours`.
        claim: What is compared.
        unit: What is counted.
        ours: This project's.
        stock: Stock LIBERO's, or what else is the baseline.
        rounds: How often each is measured.
        baseline: What `stock` is.
    """
    speeds: dict[str, list[float]] = {"ours": [], "stock": []}

    def measure(name: str, side: Side) -> None:
        start = time.perf_counter()
        units = side.work()
        speeds[name].append(units / (time.perf_counter() - start))

    def take_turns() -> None:
        stock.prepare()
        measure("stock", stock)
        ours.prepare()

    ours.prepare()
    ours.work()  # what the first call has to set up is not of interest
    benchmark.pedantic(lambda: measure("ours", ours), setup=take_turns, rounds=rounds)
    rates = Rates(ours=statistics.median(speeds["ours"]), stock=statistics.median(speeds["stock"]))
    benchmark.extra_info.update({"unit": unit, "ours": rates.ours, "stock": rates.stock, "ratio": rates.ratio})
    print(f"\n{claim}: {rates.ours:.3g} {unit}, {baseline} {rates.stock:.3g}: {rates.ratio:.{2 if rates.ratio < 2 else 1}f} x")
    return rates
