"""What the report says of supervised training: its facts, its numbers, its curves."""

import math

from vla_train.report.contents import RunContents
from vla_train.report.curves import BLUE, GREEN, ORANGE, PURPLE, iteration_curve, optimizer_panels, x_max
from vla_train.report.facts import Tile, duration, policy_text, success_tiles
from vla_train.report.figures import Curve, Panel
from vla_train.sft.config import SftConfig


def headline(config: SftConfig) -> list[tuple[str, str]]:
    """What was trained, as pairs of a word and its explanation."""
    optim = config.optim
    labels = f"rounded to {config.label_step:g}" if config.label_step else "as fine as the bins"
    arguments = " ".join(f"{key}={value}" for key, value in config.env.kwargs.items())
    return [
        ("Demonstrations", str(config.data)),
        ("Environment", f"{config.env.id} {arguments}".rstrip()),
        ("Policy", policy_text(config.policy)),
        ("Rows", f"{config.batch_rows} per step; labels {labels}"),
        ("Optimizer", f"AdamW, learning rate {optim.learning_rate:g}, {optim.schedule}, {optim.warmup_steps} steps of warm-up"),
        ("Seed", str(config.seed)),
    ]


def tiles(run: RunContents) -> list[Tile]:
    """The main numbers; those that there are."""
    found = success_tiles(run)
    if run.iterations:
        newest = run.iterations[-1]
        for name, key, form in (("Loss", "update/loss", ".3f"), ("Token accuracy", "update/token_accuracy", ".1%")):
            validation = f"validation/{key.partition('/')[2]}"
            held = [record[validation] for record in run.evaluation_records if validation in record]
            note = f"; {held[-1]:{form}} on episodes that are not trained on" if held else ""
            if newest.get(key) is not None:
                found.append(Tile(name=name, value=f"{newest[key]:{form}}", note=f"in training, varied images{note}"))
        found.append(Tile(name="Speed", value=f"{newest['update/chunks_per_s']:.3g}", note="chunks per second"))
        seconds = sum(record["update/duration_s"] for record in run.iterations)
        found.append(Tile(name="Time", value=duration(seconds), note=f"of {run.done} steps, evaluations included"))
    return found


def training_panels(run: RunContents, config: SftConfig) -> list[Panel]:
    """What the steps did."""
    return [
        Panel(
            title="Cross-entropy",
            y_label="nats per token",
            curves=[iteration_curve(run, "training", BLUE, "update/loss"), _validation(run, "loss")],
            x_label="step",
            x_max=x_max(run),
        ),
        Panel(
            title="Token accuracy",
            y_label="likeliest token is the demonstrated one",
            curves=[iteration_curve(run, "training", BLUE, "update/token_accuracy"), _validation(run, "token_accuracy")],
            x_label="step",
            x_max=x_max(run),
            percent=True,
        ),
        Panel(
            title="Entropy",
            y_label="nats per token",
            curves=[iteration_curve(run, "entropy", PURPLE, "update/entropy")],
            x_label="step",
            x_max=x_max(run),
        ),
        *optimizer_panels(run, config.optim),
    ]


def throughput_panels(run: RunContents) -> list[Panel]:
    """How fast it went."""
    return [
        Panel(
            title="Chunks per second",
            y_label="chunks/s",
            curves=[iteration_curve(run, "training", GREEN, "update/chunks_per_s")],
            x_label="step",
            x_max=x_max(run),
            note="A chunk is a state and the actions that followed it.",
        )
    ]


def _validation(run: RunContents, name: str) -> Curve:
    records = run.evaluation_records
    return Curve(
        label="not trained on",
        colour=ORANGE,
        x=[record["iteration"] for record in records],
        y=[record.get(f"validation/{name}", math.nan) for record in records],
    )
