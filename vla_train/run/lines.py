"""What a run says of itself on the terminal, as texts: how it was set up, what an iteration did, what was learnt in the end."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.markup import escape
from torch import nn

from vla_train.config import TrainConfig
from vla_train.evaluation.evaluate import play_name
from vla_train.evaluation.record import summaries
from vla_train.pipeline.rollout_result import RolloutProgress, RolloutStats
from vla_train.policy.base import TrainablePolicy
from vla_train.trainer.group_trainer import UpdateMetrics
from vla_train.types import EnvDescription
from vla_train.units import format_count


def describe_policy(policy: TrainablePolicy, env: EnvDescription) -> str:
    """How large it is, where it is, and what it reads."""
    keys = [key for key in policy.observation_keys if key in env.observations]
    reads = ", ".join(f"{key} {'x'.join(map(str, env.observations[key].shape))}" for key in keys)
    module: nn.Module = policy.trainable_module()
    parameters = list(module.parameters())
    weights = getattr(module, "num_weights", None) or sum(parameter.numel() for parameter in parameters)
    return f"policy of {format_count(weights)} weights on {parameters[0].device}, reads {reads}"


def set_up_line(config: TrainConfig, policy: TrainablePolicy, env: EnvDescription, *, done: int, seconds: float) -> str:
    """What is about to be trained."""
    left = f"{config.iterations - done} iterations to do" if done < config.iterations else f"{done} iterations done already"
    return (
        f"set up in {seconds:.1f} s: {len(env.task_ids)} tasks, {describe_policy(policy, env)}; {left}, "
        f"each of {config.rollout.groups_per_iteration} groups of {config.rollout.group_size} episodes"
    )


def speed_text(stats: RolloutStats) -> str:
    """How fast an iteration's episodes were played."""
    if not stats.decisions:
        return "played before"
    return f"{stats.decisions_per_s:.1f} chunks/s, overlap {stats.overlap_efficiency:.2f}"


def progress_text(progress: RolloutProgress) -> str:
    """How far a rollout is, besides the groups that it counts."""
    played = f"{progress.episodes} episodes and {progress.consumed} groups played"
    return f"{progress.decisions} chunks at {progress.decisions_per_s:.1f}/s, {played}"


def iteration_lines(done: int, iterations: int, stats: RolloutStats, update: UpdateMetrics) -> list[str]:
    """What an iteration did."""
    did = "[yellow]no group with signal[/yellow]: in each, all episodes did equally well; weights unchanged"
    if update.updates:
        did = f"update {update.duration_s:.1f} s{_loss_text(update)}"
    lines = [
        f"iteration {done}/{iterations}  success {stats.success_rate:.0%}  "
        f"groups {stats.groups_kept} with signal, {stats.groups_rejected} without  {speed_text(stats)}  {did}"
    ]
    if stats.worker_restarts:
        lines.append(
            f"  [yellow]{stats.worker_restarts} restarts of workers, {stats.episodes_requeued} episodes replayed[/yellow]"
        )
    return lines


def _loss_text(update: UpdateMetrics) -> str:
    """The two numbers that tell most, where the loss reports them."""
    shown = {"entropy": ".2f", "approx_kl": ".1e"}
    return "".join(
        f"  {name} {update.loss_metrics[name]:{form}}" for name, form in shown.items() if name in update.loss_metrics
    )


def evaluation_line(evaluations: Sequence[Mapping[str, Any]], *, counted: str) -> list[str]:
    """From what to what success went, by temperature; nothing where fewer than two evaluations can be compared.

    Args:
        evaluations: Records of a run's log, oldest first.
        counted: What the log numbers, such as "iteration".
    """
    if len(evaluations) < 2:
        return []
    first, last = evaluations[0], evaluations[-1]
    before, after = summaries(first), summaries(last)
    rates = [
        f"{play_name(temperature)} {before[temperature]['success_rate']:.0%} -> {after[temperature]['success_rate']:.0%}"
        for temperature in after
        if temperature in before
    ]
    return [f"success {', '.join(rates)}, from {counted} {first['iteration']} to {last['iteration']}"] if rates else []


def saved_line(path: Path, still_s: float) -> str:
    """Where a checkpoint is, and what it cost."""
    return f"checkpoint: {escape(str(path))} (training stood still for {still_s:.1f} s)"


def end_lines(output: str, evaluations: Sequence[Mapping[str, Any]], *, updates: int) -> list[str]:
    """What was learnt, and where to look.

    Args:
        output: The run's folder.
        evaluations: Records of the run's log, oldest first.
        updates: AdamW steps of the whole run.
    """
    lines = []
    if updates == 0:
        lines.append(
            "[yellow]nothing was learnt[/yellow]: no group of any iteration had a signal, so the weights are those of the "
            "start. A policy that sometimes succeeds (policy.checkpoint), or easier tasks, would give signals."
        )
    else:
        lines += evaluation_line(evaluations, counted="iteration")
    folder = escape(output)
    return [
        *lines,
        f"done: {folder}. Look at it: python -m vla_train report {folder}. Go on: the same command with more --iterations, or "
        "teach another task (docs/cold_start.md)",
    ]
