"""Statistics as LeRobot keeps them: of each feature in each episode, and in all episodes together.

Knows no files. Numbers are exact; those of pictures come from histograms, scaled to 0 .. 1, shaped (3, 1, 1).
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

Statistics = dict[str, Any]
"""Of one feature: min, max, mean, std, q01 .. q99 as lists, and count, [number of frames]."""

QUANTILES = {"q01": 0.01, "q10": 0.1, "q50": 0.5, "q90": 0.9, "q99": 0.99}
NAMES = ("min", "max", "mean", "std", *QUANTILES, "count")


def number_statistics(values: np.ndarray) -> Statistics:
    """Of (T, D) numbers, per dimension."""
    values = np.asarray(values, np.float64)
    quantiles = np.quantile(values, list(QUANTILES.values()), axis=0)
    return {
        "min": values.min(0).tolist(),
        "max": values.max(0).tolist(),
        "mean": values.mean(0).tolist(),
        "std": values.std(0).tolist(),
        **{name: row.tolist() for name, row in zip(QUANTILES, quantiles, strict=True)},
        "count": [len(values)],
    }


def picture_statistics(histogram: np.ndarray, *, num_frames: int) -> Statistics:
    """Of pictures, from their (3, 256) histogram."""
    values = np.arange(256) / 255
    total = histogram.sum(1)
    mean = histogram @ values / total
    variance = histogram @ values**2 / total - mean**2
    below = histogram.cumsum(1)
    present = [np.flatnonzero(channel) for channel in histogram]
    statistics = {
        "min": values[[places[0] for places in present]],
        "max": values[[places[-1] for places in present]],
        "mean": mean,
        "std": np.sqrt(np.maximum(variance, 0)),
        **{name: values[(below < share * total[:, None]).sum(1)] for name, share in QUANTILES.items()},
    }
    return {name: numbers.reshape(3, 1, 1).tolist() for name, numbers in statistics.items()} | {"count": [num_frames]}


def combined(parts: Sequence[Mapping[str, Any]]) -> Statistics:
    """Of all frames, from those of several episodes; quantiles are averaged over frames, as LeRobot does."""
    counts = np.array([part["count"][0] for part in parts], np.float64)
    weights = counts / counts.sum()
    of = {name: np.array([part[name] for part in parts]) for name in NAMES[:-1]}
    weights = weights.reshape(-1, *[1] * (of["mean"].ndim - 1))
    mean = (weights * of["mean"]).sum(0)
    variance = (weights * (of["std"] ** 2 + (of["mean"] - mean) ** 2)).sum(0)
    statistics = {"min": of["min"].min(0), "max": of["max"].max(0), "mean": mean, "std": np.sqrt(variance)}
    statistics |= {name: (weights * of[name]).sum(0) for name in QUANTILES}
    return {name: numbers.tolist() for name, numbers in statistics.items()} | {"count": [int(counts.sum())]}
