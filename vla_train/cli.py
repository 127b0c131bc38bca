"""The command line: parses and checks everything before it imports torch or a simulator.

    python -m vla_train [train|eval|report] [options]

`train` is the default command. Options are generated from `vla_train.config`; a recipe gives their defaults.
"""

import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import tyro

from vla_train.config import EvaluateConfig, TrainConfig, config_from_json
from vla_train.recipes import DEFAULT_RECIPE, RECIPES

_OVERVIEW = f"""\
Reinforcement learning of vision-language-action policies on any Gymnasium vector env.

usage: python -m vla_train [COMMAND] [OPTIONS]

commands:
  train     GRPO with the pipelined rollout (the default)
  eval      greedy evaluation of a checkpoint: success per task, with videos
  report    one HTML page about a run: curves, timeline, throughput, videos

recipes (train --recipe NAME; any option may still be changed):
  cpu       {RECIPES["cpu"].__doc__}
  one-gpu   {RECIPES["one-gpu"].__doc__}
  paper     {RECIPES["paper"].__doc__}

examples:
  python -m vla_train
  python -m vla_train train --recipe one-gpu --policy.checkpoint CHECKPOINT --env.kwargs suite=libero_10
  python -m vla_train train --env.id Pendulum-v1 --env.image-key render --env.instruction "balance the pole"
  python -m vla_train eval --checkpoint runs/cpu
  python -m vla_train report runs/cpu

Every option of a command: python -m vla_train COMMAND --help
"""


def main(argv: Sequence[str] | None = None) -> None:
    """Run one command; errors in what the user gave are printed without a traceback, with exit status 2."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments[:1] in (["-h"], ["--help"], ["help"]):
        print(_OVERVIEW, end="")
        return
    command = arguments.pop(0) if arguments and not arguments[0].startswith("-") else "train"
    commands = {"train": _train, "eval": _evaluate, "report": _report}
    if command not in commands:
        _fail(f"unknown command {command!r}: choose one of {', '.join(commands)} (python -m vla_train --help)")
    try:
        commands[command](arguments)
    except (ValueError, ImportError) as error:
        _fail(str(error))


def parse_train(arguments: Sequence[str]) -> TrainConfig:
    """The config of a training run, from a recipe and options.

    Raises:
        ValueError: The recipe is unknown, or the values cannot work together.
    """
    arguments = list(arguments)
    recipe = DEFAULT_RECIPE
    for index, argument in enumerate(arguments):
        if argument == "--recipe" or argument.startswith("--recipe="):
            _, equals, recipe = argument.partition("=")
            if not equals:
                if index + 1 == len(arguments):
                    raise ValueError(f"--recipe needs a name: choose one of {', '.join(RECIPES)}")
                recipe = arguments[index + 1]
            del arguments[index : index + (1 if equals else 2)]
            break
    if recipe not in RECIPES:
        raise ValueError(f"unknown recipe {recipe!r}: choose one of {', '.join(RECIPES)}")
    defaults = RECIPES[recipe]()
    if any(argument.partition("=")[0] == "--env.id" for argument in arguments):
        defaults = replace(defaults, env=replace(defaults.env, kwargs={}))
    return tyro.cli(
        TrainConfig,
        prog="python -m vla_train train",
        description=f"Train with GRPO. Defaults shown are those of the recipe {recipe!r}; --recipe NAME takes another "
        f"({', '.join(RECIPES)}).",
        default=defaults,
        args=arguments,
    )


def parse_evaluate(arguments: Sequence[str]) -> EvaluateConfig:
    """The config of an evaluation; a checkpoint inside a run takes env, policy, seed and split from that run.

    Raises:
        ValueError: The run's config cannot be read.
    """
    return tyro.cli(
        EvaluateConfig,
        prog="python -m vla_train eval",
        description="Evaluate a checkpoint greedily. A checkpoint of a run takes that run's env, policy, seed and split.",
        default=_defaults_of_run(arguments),
        args=list(arguments),
    )


def _defaults_of_run(arguments: Sequence[str]) -> EvaluateConfig:
    checkpoint = tyro.MISSING
    for index, argument in enumerate(arguments):
        if argument == "--checkpoint" and index + 1 < len(arguments):
            checkpoint = arguments[index + 1]
        elif argument.startswith("--checkpoint="):
            checkpoint = argument.partition("=")[2]
    config = EvaluateConfig(checkpoint=checkpoint)
    if not isinstance(checkpoint, str):
        return config
    folder = Path(checkpoint)
    for candidate in (folder, *folder.parents[:3]):
        if (candidate / "config.json").is_file() and (candidate / "checkpoints").is_dir():
            run = config_from_json(json.loads((candidate / "config.json").read_text()))
            return replace(
                config, seed=run.seed, train_fraction=run.train_fraction, env=run.env, policy=run.policy, eval=run.eval
            )
    return config


def _train(arguments: list[str]) -> None:
    config = parse_train(arguments)
    from vla_train.loop import train

    train(config)


def _evaluate(arguments: list[str]) -> None:
    config = parse_evaluate(arguments)
    from vla_train.loop import evaluate_checkpoint

    evaluate_checkpoint(config)


def _report(arguments: list[str]) -> None:
    run = tyro.cli(
        Path, prog="python -m vla_train report", description="Write RUN/report.html, one self-contained page.", args=arguments
    )
    if not (run / "config.json").is_file():
        raise ValueError(f"{run} is not the folder of a run: it has no config.json")
    from vla_train.report import write_report

    print(f"report: {write_report(run)}")


def _fail(message: str) -> None:
    print(f"error: {message}", file=sys.stderr)
    raise SystemExit(2)
