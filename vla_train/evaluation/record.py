"""An evaluation at several temperatures as one record of JSON data: in a run's log, and in `results.json`.

The first temperature's numbers have plain names (`success_rate`), those of others end in it (`success_rate_t1.0`): whoever
looks for "the" success rate finds the one that decides which checkpoint is the best.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from vla_train.evaluation.evaluate import EvaluationResult, summary


def evaluation_record(results: Sequence[EvaluationResult]) -> dict[str, Any]:
    """One or more results of the same weights, the deciding one first."""
    record: dict[str, Any] = {"temperatures": [result.temperature for result in results]}
    for index, result in enumerate(results):
        record |= {f"{name}{_suffix(index, result.temperature)}": value for name, value in summary(result).items()}
    return record


def summaries(record: Mapping[str, Any]) -> dict[float, dict[str, Any]]:
    """The `summary` of each temperature in a record, the deciding one first; earlier versions wrote greedy ones alone."""
    names = ("success_rate", "interval_low", "interval_high", "episodes", "successes", "tasks")
    return {
        temperature: {name: record[f"{name}{_suffix(index, temperature)}"] for name in names}
        for index, temperature in enumerate(record.get("temperatures", [0.0]))
    }


def _suffix(index: int, temperature: float) -> str:
    return f"_t{float(temperature)}" if index else ""
