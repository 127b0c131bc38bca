"""Evaluations as the terminal shows them: progress while they are played, then a table with one row per task."""

from collections.abc import Sequence
from pathlib import Path

from vla_train.config import EvalConfig
from vla_train.display import Display
from vla_train.evaluation.evaluate import EvaluationResult, evaluate
from vla_train.pipeline.rollout import Rollout
from vla_train.types import EpisodeSpec


def evaluate_with_progress(
    episodes: Sequence[EpisodeSpec],
    rollout: Rollout,
    config: EvalConfig,
    *,
    folder: Path,
    mirrored_images: bool,
    display: Display,
) -> EvaluationResult:
    """Play the episodes that `folder` does not hold yet, greedily, and return all of them; see `evaluate`."""
    with display.phase("evaluation", total=len(episodes), unit="episodes") as show:
        return evaluate(
            episodes,
            rollout.play,
            folder=folder,
            videos=config.videos,
            mirrored_images=mirrored_images,
            on_episode=lambda successes, done, _: show(done, f"{successes} succeeded"),
        )


def show_evaluation(display: Display, result: EvaluationResult, *, title: str) -> None:
    """Print an evaluation's table."""
    rows = [
        [f"{task.task_id} {task.instruction}", str(task.episodes), f"{task.success_rate:.1%}", _interval(task.interval)]
        for task in result.tasks
    ]
    rows.append(["all", str(len(result.episodes)), f"{result.success_rate:.1%}", _interval(result.interval)])
    display.table(title, ["task", "episodes", "success", "95 % interval"], rows)


def _interval(interval: tuple[float, float]) -> str:
    return f"{interval[0]:.1%} - {interval[1]:.1%}"
