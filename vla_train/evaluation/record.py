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


def suites_record(results: Mapping[str, Sequence[EvaluationResult]]) -> dict[str, Any]:
    """The results of several suites, by name, as one record of the same form: rates over all their episodes, tasks that say
    their suite, and each suite's own record under `suites`."""
    record = evaluation_record(pooled(results))
    for index, temperature in enumerate(record["temperatures"]):
        record[f"tasks{_suffix(index, temperature)}"] = [
            {"suite": suite, **task} for suite, of_suite in results.items() for task in summary(of_suite[index])["tasks"]
        ]
    return record | {"suites": {suite: evaluation_record(of_suite) for suite, of_suite in results.items()}}


def pooled(results: Mapping[str, Sequence[EvaluationResult]]) -> list[EvaluationResult]:
    """By temperature: the episodes of all suites together. Their task ids say nothing without the suite."""
    return [
        EvaluationResult(
            episodes=tuple(episode for result in at_temperature for episode in result.episodes),
            temperature=at_temperature[0].temperature,
        )
        for at_temperature in zip(*results.values(), strict=True)
    ]


def summaries(record: Mapping[str, Any]) -> dict[float, dict[str, Any]]:
    """The `summary` of each temperature in a record, the deciding one first; earlier versions wrote greedy ones alone."""
    names = ("success_rate", "interval_low", "interval_high", "episodes", "successes", "tasks")
    return {
        temperature: {name: record[f"{name}{_suffix(index, temperature)}"] for name in names}
        for index, temperature in enumerate(record.get("temperatures", [0.0]))
    }


def _suffix(index: int, temperature: float) -> str:
    return f"_t{float(temperature)}" if index else ""
