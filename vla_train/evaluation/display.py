"""Evaluations as the terminal shows them: progress while they are played, then a table with one row per task, or per suite.

The temperatures of an evaluation are played one after the other, into one folder.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from pathlib import Path

from vla_train.config import EvalConfig
from vla_train.display import Display
from vla_train.evaluation.evaluate import EvaluationResult, Identity, TaskResult, evaluate, play_name
from vla_train.evaluation.record import pooled
from vla_train.pipeline.rollout import Rollout
from vla_train.types import EnvDescription, EpisodeSpec


def evaluate_with_progress(
    episodes: Mapping[float, Sequence[EpisodeSpec]],
    rollout: Rollout,
    config: EvalConfig,
    *,
    folder: Path,
    env: EnvDescription,
    display: Display,
    filmed: Collection[Identity] = (),
    name: Callable[[float], str] = play_name,
) -> list[EvaluationResult]:
    """Play the episodes of each temperature that `folder` does not hold yet, and return all of them; see `evaluate`.

    `name` says in words how the policy plays at a temperature.
    """

    def play(temperature: float) -> EvaluationResult:
        with display.phase("evaluation", total=len(episodes[temperature]), unit="episodes") as show:
            return evaluate(
                episodes[temperature],
                partial(rollout.play, temperature=temperature),
                temperature=temperature,
                folder=folder,
                videos=config.videos,
                mirrored_images=env.mirrored_images,
                actions_per_s=env.actions_per_s,
                filmed=filmed,
                on_episode=lambda successes, done, _: show(done, f"{name(temperature)}: {successes} succeeded"),
            )

    return [play(temperature) for temperature in episodes]


def show_evaluation(
    display: Display, results: Sequence[EvaluationResult], *, title: str, name: Callable[[float], str] = play_name
) -> None:
    """Print an evaluation's tables, one for each temperature."""
    for result in results:
        _show(display, result, title=f"{title}, {name(result.temperature)}")


def show_suites(
    display: Display,
    results: Mapping[str, Sequence[EvaluationResult]],
    *,
    title: str,
    name: Callable[[float], str] = play_name,
) -> None:
    """Print a table with one row per suite, by name, and one of all their episodes, for each temperature."""
    for index, together in enumerate(pooled(results)):
        rows, num_tasks = [], 0
        for suite, of_suite in results.items():
            result = of_suite[index]
            num_tasks += len(result.tasks)
            rows.append([suite, str(len(result.tasks)), *_rates(len(result.episodes), result)])
        rows.append(["all", str(num_tasks), *_rates(len(together.episodes), together)])
        columns = ["suite", "tasks", "episodes", "success", "95 % interval"]
        display.table(f"{title}, {name(together.temperature)}", columns, rows)


def _show(display: Display, result: EvaluationResult, *, title: str) -> None:
    rows = [[f"{task.task_id} {task.instruction}", *_rates(task.episodes, task)] for task in result.tasks]
    rows.append(["all", *_rates(len(result.episodes), result)])
    display.table(title, ["task", "episodes", "success", "95 % interval"], rows)


def _rates(episodes: int, result: EvaluationResult | TaskResult) -> list[str]:
    low, high = result.interval
    return [str(episodes), f"{result.success_rate:.1%}", f"{low:.1%} - {high:.1%}"]
