"""The expert's results as a page of the docs."""

from collections.abc import Sequence
from pathlib import Path

from benchmarks.expert.sweep import TaskResult

_HEAD = """# The scripted expert, task by task

Written by `python -m benchmarks.expert`: {episodes}, each task from its first stored initial states, noise {noise:g},
settling and time limits as in evaluation. What the expert is and how to use it: [environments.md](environments.md).

| suite | tasks played | success on them | success on all | declined |
|---|---|---|---|---|
"""


def write_report(results: Sequence[TaskResult], file: Path, *, noise: float) -> None:
    """Write all results.

    Args:
        results: Of all tasks, in order.
        file: Where to.
        noise: With which they were reached.
    """
    episodes = f"{sum(result.episodes for result in results):,} episodes"
    text = _HEAD.format(episodes=episodes, noise=noise)
    suites = list(dict.fromkeys(result.suite for result in results))
    for suite in suites:
        own = [result for result in results if result.suite == suite]
        played = [result for result in own if not result.declined]
        rates = [result.successes / result.episodes for result in played]
        mean = f"{100 * sum(rates) / len(rates):.1f} %" if rates else "-"
        text += f"| {suite} | {len(played)} | {mean} | {100 * sum(rates) / len(own):.1f} % | {len(own) - len(played)} |\n"
    for suite in suites:
        text += f"\n## {suite}\n\n| task | instruction | success | control steps, median |\n|---|---|---|---|\n"
        for result in (result for result in results if result.suite == suite):
            text += f"| {result.task_id} | {result.instruction} | {_outcome(result)} |\n"
    file.write_text(text)


def _outcome(result: TaskResult) -> str:
    if result.declined:
        return f"declined: {result.declined} | -"
    steps = f"{result.median_steps:.0f}" if result.successes else "-"
    return f"{result.successes}/{result.episodes} | {steps}"
