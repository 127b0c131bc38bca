"""Which of a run's numbers are drawn, together with which others, and in what words.

Invariant: what was not measured is a gap. An iteration without a group with signal updates nothing, so it has no loss, no
entropy, no gradient.
"""

import math
from collections.abc import Mapping, Sequence

from vla_train.config import AdamWConfig, TrainConfig
from vla_train.evaluation.evaluate import play_name
from vla_train.evaluation.record import summaries
from vla_train.pipeline.timeline import Span, ordered_resources
from vla_train.report.contents import Record, RunContents
from vla_train.report.figures import Bar, Curve, Panel

GREEN, BLUE, ORANGE, RED, PURPLE = "#3f9c5a", "#5b8fc7", "#f28e2b", "#e15759", "#b07aa1"
"""Of a middle lightness: they read on white and on dark paper."""
_BY_TEMPERATURE = (GREEN, ORANGE, PURPLE, RED)
"""Colours of evaluations at several temperatures, in their order."""


def success_panel(run: RunContents) -> Panel:
    """Success over the whole suite: of evaluations, and as sampled in the rollouts."""
    return Panel(
        title="Success over training",
        y_label="success rate",
        curves=[
            iteration_curve(run, "rollouts (sampled, training starts)", BLUE, "rollout/success_rate"),
            *_success_curves("evaluation ({}), 95 % interval", _points(run.evaluation_records)),
        ],
        x_label=run.unit,
        x_max=x_max(run),
        percent=True,
    )


def task_panels(run: RunContents) -> list[Panel]:
    """One panel per task, by task id; none where a single task says what the whole says."""
    by_task: dict[int, dict[float, list[Record]]] = {}
    for temperature, points in _points(run.evaluation_records).items():
        for point in points:
            for task in point["tasks"]:
                low, high = task["interval"]
                own = {**task, "iteration": point["iteration"], "interval_low": low, "interval_high": high}
                by_task.setdefault(task["task_id"], {}).setdefault(temperature, []).append(own)
    if len(by_task) == 1:
        return []
    return [
        Panel(
            title=f"{task_id} · {next(iter(points.values()))[-1]['instruction']}",
            y_label="success rate",
            curves=_success_curves("{}", points),
            x_label=run.unit,
            x_max=x_max(run),
            percent=True,
        )
        for task_id, points in sorted(by_task.items())
    ]


def training_panels(run: RunContents, config: TrainConfig) -> list[Panel]:
    """What the updates did."""
    end = x_max(run)
    return [
        Panel(
            title="Groups with a learning signal",
            y_label="groups per iteration",
            curves=[
                iteration_curve(run, "with signal", GREEN, "rollout/groups_kept"),
                iteration_curve(run, "without", RED, "rollout/groups_rejected"),
            ],
            x_max=end,
            note="In a group without signal all episodes did equally well; it is replaced, and teaches nothing.",
        ),
        Panel(
            title="Entropy",
            y_label="nats per token",
            curves=[iteration_curve(run, "entropy", PURPLE, "update/entropy")],
            x_max=end,
            note="At the sampling temperature.",
            from_zero=False,
        ),
        Panel(
            title="KL divergence",
            y_label="nats per token",
            curves=[
                iteration_curve(run, "from the sampling policy", BLUE, "update/approx_kl"),
                iteration_curve(run, "sampling gap", ORANGE, "update/sampling_gap"),
            ],
            x_max=end,
            note="Sampling gap: |log-prob in training - in sampling| before the first update; rounding, unless weights lag.",
        ),
        Panel(
            title="Clip fractions",
            y_label="fraction of tokens",
            curves=[
                iteration_curve(run, "at the upper bound", ORANGE, "update/clip_fraction_high"),
                iteration_curve(run, "at the lower bound", BLUE, "update/clip_fraction_low"),
            ],
            x_max=end,
            note=f"The ratio is clipped at {1 - config.algo.clip_low:.2f} and {1 + config.algo.clip_high:.2f}.",
        ),
        *optimizer_panels(run, config.optim),
    ]


def optimizer_panels(run: RunContents, optim: AdamWConfig) -> list[Panel]:
    """What AdamW did."""
    end = x_max(run)
    return [
        Panel(
            title="Gradient norm",
            y_label="norm before clipping",
            curves=[
                iteration_curve(run, "mean", BLUE, "update/grad_norm"),
                iteration_curve(run, "largest", ORANGE, "update/grad_norm_max"),
            ],
            x_label=run.unit,
            x_max=end,
            limits={"clipped at": optim.max_grad_norm},
        ),
        Panel(
            title="Learning rate",
            y_label="learning rate (AdamW)",
            curves=[iteration_curve(run, "learning rate", RED, "update/learning_rate")],
            x_label=run.unit,
            x_max=end,
        ),
    ]


def throughput_panels(run: RunContents) -> list[Panel]:
    """How fast it went."""
    end = x_max(run)
    return [
        Panel(
            title="Chunks per second",
            y_label="chunks/s",
            curves=[
                iteration_curve(run, "rollout", BLUE, "rollout/decisions_per_s"),
                iteration_curve(run, "update", RED, "update/chunks_per_s"),
            ],
            x_max=end,
            note="A chunk is one decision of the policy and the actions it stands for.",
        ),
        Panel(
            title="Seconds per iteration",
            y_label="seconds",
            curves=[
                iteration_curve(run, "rollout", PURPLE, "rollout/duration_s"),
                iteration_curve(run, "policy", ORANGE, "rollout/policy_s"),
                iteration_curve(run, "busiest worker", BLUE, "rollout/env_s"),
                iteration_curve(run, "update", RED, "update/duration_s"),
            ],
            x_max=end,
            note="Policy and busiest worker: the time in which each worked, at the same time. The rollout should take little "
            "more than the slower of them.",
        ),
        Panel(
            title="Overlap efficiency",
            y_label="slower of the two / rollout",
            curves=[iteration_curve(run, "overlap", GREEN, "rollout/overlap_efficiency")],
            x_max=end,
            note="100 %: the slower of policy and workers never waited.",
            percent=True,
        ),
    ]


def time_bars(spans: Sequence[Span]) -> list[Bar]:
    """What each resource did with the time from the first span to the last."""
    if not spans:
        return []
    wall_s = max(span.end for span in spans) - min(span.start for span in spans)
    bars = []
    for resource in ordered_resources(spans):
        parts = {kind: seconds / wall_s for kind, seconds in _own_times(spans, resource).items()}
        bars.append(Bar(label=resource, parts={**parts, "idle": max(0.0, 1.0 - sum(parts.values()))}))
    return bars


def _own_times(spans: Sequence[Span], resource: str) -> dict[str, float]:
    """Seconds of one resource by kind; where one span lies inside another, as drawing in a step, only the inner one counts."""
    seconds: dict[str, float] = {}
    around: list[Span] = []
    for span in sorted((span for span in spans if span.resource == resource), key=lambda span: (span.start, -span.end)):
        while around and around[-1].end <= span.start:
            around.pop()
        if around:
            seconds[around[-1].kind] -= min(span.end, around[-1].end) - span.start
        seconds[span.kind] = seconds.get(span.kind, 0.0) + span.end - span.start
        around.append(span)
    return seconds


def series(records: Sequence[Record], name: str) -> list[float]:
    """One number per record; NaN where it was not measured."""

    def value(record: Record) -> float:
        measured = record.get("update/updates") if name.startswith("update/") else True
        number = record.get(name)
        return number if measured and number is not None else math.nan

    return [value(record) for record in records]


def iteration_curve(run: RunContents, label: str, colour: str, name: str) -> Curve:
    """One number of every iteration, or step."""
    x = [record["iteration"] for record in run.iterations]
    return Curve(label=label, colour=colour, x=x, y=series(run.iterations, name))


def _points(records: Sequence[Record]) -> dict[float, list[Record]]:
    """Evaluations by temperature, with the iteration of each."""
    points: dict[float, list[Record]] = {}
    for record in records:
        for temperature, numbers in summaries(record).items():
            points.setdefault(temperature, []).append({**numbers, "iteration": record["iteration"]})
    return points


def _success_curves(label: str, points: Mapping[float, Sequence[Record]]) -> list[Curve]:
    """One curve for each temperature, which takes the place of {} in the label."""
    return [
        Curve(
            label=label.format(play_name(temperature)),
            colour=_BY_TEMPERATURE[index % len(_BY_TEMPERATURE)],
            x=[point["iteration"] for point in own],
            y=[point["success_rate"] for point in own],
            intervals=[(point["interval_low"], point["interval_high"]) for point in own],
        )
        for index, (temperature, own) in enumerate(points.items())
    ]


def x_max(run: RunContents) -> float:
    """Where the axis of iterations, or steps, ends."""
    return max(run.done, 1)
