"""What a reader wants to know first: what was trained, how far it is, and its main numbers, in words."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from vla_train.config import PolicyConfig, TrainConfig
from vla_train.evaluation.evaluate import play_name
from vla_train.evaluation.record import summaries
from vla_train.report.contents import RunContents
from vla_train.report.curves import series

_RECENT = 10
"""Speeds are medians over this many iterations."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Tile:
    """One main number."""

    name: str
    value: str
    note: str


def headline(config: TrainConfig) -> list[tuple[str, str]]:
    """What was trained, as pairs of a word and its explanation."""
    env, policy, rollout, algo, optim = config.env, config.policy, config.rollout, config.algo, config.optim
    limit = "" if env.max_episode_steps is None else f", at most {env.max_episode_steps} steps"
    arguments = " ".join(f"{key}={value}" for key, value in env.kwargs.items())
    final = rollout.final_temperature
    return [
        ("Environment", f"{env.id} {arguments}".rstrip()),
        ("Simulators", f"{env.num_workers} workers of {env.envs_per_worker} envs ({env.worker}){limit}"),
        ("Policy", policy_text(policy)),
        (
            "Rollout",
            f"{rollout.groups_per_iteration} groups of {rollout.group_size} episodes per iteration, "
            f"temperature {rollout.temperature:g}" + ("" if final is None else f" to {final:g}"),
        ),
        ("Algorithm", f"{algo.advantage}, clip {1 - algo.clip_low:g} to {1 + algo.clip_high:g}, {algo.aggregation}"),
        (
            "Optimizer",
            f"AdamW, learning rate {optim.learning_rate:g}, {optim.minibatch_trajectories} trajectories per step, "
            f"{optim.epochs} epoch{'s' if optim.epochs > 1 else ''}",
        ),
        ("Seed", str(config.seed)),
    ]


def policy_text(policy: PolicyConfig) -> str:
    """Which policy, and what of it is trained."""
    weights = f"from {policy.checkpoint}" if policy.checkpoint else f"{policy.size}, from random weights"
    trained = f"LoRA of rank {policy.lora_rank}" if policy.lora_rank else "all weights"
    return f"{policy.factory} {weights}; {trained}; chunks of {policy.chunk_size} actions"


def state(run: RunContents) -> str:
    """How far the run is."""
    if run.done >= run.planned:
        return f"complete: {run.done} of {max(run.done, run.planned)} {run.unit}s"
    return f"{run.unit} {run.done} of {run.planned}: going on, or interrupted"


def success_tiles(run: RunContents) -> list[Tile]:
    """Success of the newest evaluation, at each temperature."""
    found: list[Tile] = []
    if run.evaluation_records:
        newest = run.evaluation_records[-1]
        before = summaries(run.evaluation_records[0])
        for temperature, numbers in summaries(newest).items():
            start = ""
            if newest["iteration"] and run.evaluation_records[0]["iteration"] == 0 and temperature in before:
                start = f", {before[temperature]['success_rate']:.1%} before training"
            found.append(
                Tile(
                    name=f"Success, {play_name(temperature)}",
                    value=f"{numbers['success_rate']:.1%}",
                    note=f"{numbers['successes']} of {numbers['episodes']} episodes, 95\u00a0% interval "
                    f"{numbers['interval_low']:.0%} to {numbers['interval_high']:.0%}, after {run.unit} {newest['iteration']}"
                    f"{start}",
                )
            )
    return found


def tiles(run: RunContents) -> list[Tile]:
    """The main numbers; those that there are."""
    found = success_tiles(run)
    if not run.iterations:
        return found
    recent = run.iterations[-_RECENT:]

    def median(name: str) -> float:
        return _median(series(recent, name))

    over = "in the newest iteration" if len(recent) == 1 else f"median of {len(recent)} iterations"
    found.append(
        Tile(name="Success, rollouts", value=f"{median('rollout/success_rate'):.1%}", note=f"sampled for training, {over}")
    )
    if not math.isnan(median("rollout/decisions_per_s")):
        found.append(Tile(name="Rollout", value=f"{median('rollout/decisions_per_s'):.3g}", note=f"chunks per second, {over}"))
    if not math.isnan(median("update/chunks_per_s")):
        found.append(Tile(name="Update", value=f"{median('update/chunks_per_s'):.3g}", note=f"chunks per second, {over}"))
    if not math.isnan(median("rollout/overlap_efficiency")):
        found.append(
            Tile(
                name="Overlap",
                value=f"{median('rollout/overlap_efficiency'):.0%}",
                note="how much of the rollout its slower side, policy or simulators, was at work",
            )
        )
    seconds = sum(value for value in series(run.iterations, "time/iteration_s") if not math.isnan(value))
    found.append(Tile(name="Time", value=duration(seconds), note=f"in {len(run.iterations)} iterations, evaluations apart"))
    return found


def notices(run: RunContents) -> list[str]:
    """What a reader must not overlook."""
    found = []
    if not run.iterations:
        found.append(f"No {run.unit} has ended yet: curves appear with the first.")
    silent = [record["iteration"] for record in run.iterations if record.get("update/updates") == 0]
    if silent:
        found.append(
            f"No group with signal in {len(silent)} of {len(run.iterations)} iterations ({_ranges(silent)}): in each group all "
            "episodes did equally well, so the weights stayed as they were. The curves of the updates have gaps there."
        )
    restarts = sum(int(record.get("rollout/worker_restarts") or 0) for record in run.iterations)
    if restarts:
        replayed = sum(int(record.get("rollout/episodes_requeued") or 0) for record in run.iterations)
        found.append(f"Workers failed and were restarted ({restarts} in all); {replayed} episodes were played again.")
    return found


def duration(seconds: float) -> str:
    """Seconds in the unit that a person would use."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    if seconds < 100 * 60:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"


def _median(values: Sequence[float]) -> float:
    known = [value for value in values if not math.isnan(value)]
    return statistics.median(known) if known else math.nan


def _ranges(numbers: Sequence[int]) -> str:
    """1, 2, 3, 7 as "1-3, 7"; the end of a long list is left out."""
    parts: list[list[int]] = []
    for number in numbers:
        if parts and number == parts[-1][1] + 1:
            parts[-1][1] = number
        else:
            parts.append([number, number])
    texts = [str(first) if first == last else f"{first}-{last}" for first, last in parts]
    return ", ".join(texts[:8]) + (", ..." if len(texts) > 8 else "")
