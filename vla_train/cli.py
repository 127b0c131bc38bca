"""The command line: parses and checks everything before it imports torch or a simulator.

    python -m vla_train [train|eval|report] [options]

`train` is the default command. Options are generated from `vla_train.config`; a recipe gives their defaults.
"""

import json
import logging
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated, NoReturn

import tyro

from vla_train.config import EvaluateConfig, TrainConfig, config_from_json
from vla_train.recipes import DEFAULT_RECIPE, RECIPES


def _recipe_lines() -> str:
    return "\n".join(f"  {name:<9} {recipe.__doc__}" for name, recipe in RECIPES.items())


_OVERVIEW = f"""\
Reinforcement learning of vision-language-action policies on any Gymnasium vector env.

usage: python -m vla_train [COMMAND] [OPTIONS]

commands:
  train     improve a policy by GRPO, playing and learning in turn (the default)
  eval      play a checkpoint greedily: success per task with confidence intervals, videos
  report    one HTML page about a run: curves, timeline, throughput, videos

recipes (train --recipe NAME; without one: {DEFAULT_RECIPE}; any option may still be changed):
{_recipe_lines()}

examples:
  python -m vla_train
  python -m vla_train train --recipe one-gpu --policy.checkpoint CHECKPOINT --env.kwargs suite=libero_10
  python -m vla_train train --env.id InvertedPendulum-v5 --env.image-key render --env.instruction "balance the pole" \\
      --env.success return --env.success-return 50 --env.max-episode-steps 200 --output runs/pendulum
  python -m vla_train eval --checkpoint runs/cpu --eval.episodes-per-task 0
  python -m vla_train report runs/cpu

Every option of a command: python -m vla_train COMMAND --help
"""


def main(argv: Sequence[str] | None = None) -> None:
    """Run one command.

    What is refused before anything has begun is printed without a traceback, with exit status 2. An interrupted command ends
    with status 130.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments[:1] in (["-h"], ["--help"], ["help"]):
        print(_OVERVIEW, end="")
        return
    command = arguments.pop(0) if arguments and not arguments[0].startswith("-") else "train"
    commands = {"train": _train, "eval": _evaluate, "report": _report}
    if command not in commands:
        _fail(f"unknown command {command!r}: choose one of {', '.join(commands)} (python -m vla_train --help)")
    _share_cores()
    _show_log()
    try:
        begun = commands[command](arguments)
    except (ValueError, ImportError) as error:
        _fail(str(error))
    except KeyboardInterrupt:
        print("interrupted before anything had begun", file=sys.stderr)
        raise SystemExit(130) from None
    begun()


def _share_cores() -> None:
    """Let threads of PyTorch that wait for each other sleep: spinning, they would take the cores from the simulators."""
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # read once, when PyTorch is imported


def _show_log() -> None:
    """What takes long, or went wrong and was mended, goes to standard error."""
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    for package in ("vla_envs", "vla_train"):
        logging.getLogger(package).setLevel(logging.INFO)


def parse_train(arguments: Sequence[str]) -> TrainConfig:
    """The config of a training run, from a recipe and options.

    Raises:
        ValueError: The recipe is unknown, it needs a checkpoint, or an option was given twice.
        SystemExit: An option is unknown, or its value cannot work; the reason was printed.
    """
    arguments = list(arguments)
    _refuse_repeats(arguments)
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
    config = tyro.cli(
        TrainConfig,
        prog="python -m vla_train train",
        description=f"Train with GRPO.\n\nThe defaults shown are those of the recipe {recipe!r}; --recipe NAME takes another:\n"
        + _recipe_lines(),
        default=defaults,
        args=arguments,
    )
    if config.policy.size == "openvla-7b" and config.policy.checkpoint is None:
        who = f"recipe {recipe!r}" if defaults.policy.size == "openvla-7b" else "policy.size openvla-7b"
        raise ValueError(f"{who} goes on from a trained policy: name one with --policy.checkpoint")
    return config


def parse_evaluate(arguments: Sequence[str]) -> EvaluateConfig:
    """The config of an evaluation; a checkpoint inside a run takes env, policy, seed, split and evaluation of that run.

    Raises:
        ValueError: The run's config cannot be read, or an option was given twice.
        SystemExit: An option is unknown, or its value cannot work; the reason was printed.
    """
    _refuse_repeats(arguments)
    return tyro.cli(
        EvaluateConfig,
        prog="python -m vla_train eval",
        description="Play a checkpoint greedily, and write success rates per task and videos. The checkpoint of a run takes "
        "that run's options as defaults: name it to see them here.",
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
    folder = Path(checkpoint).resolve()
    for candidate in (folder, *folder.parents[:3]):
        file = candidate / "config.json"
        if file.is_file() and (candidate / "checkpoints").is_dir():
            try:
                run = config_from_json(json.loads(file.read_text()))
            except ValueError as error:
                raise ValueError(f"{file} cannot be read: {error}") from error
            nothing_held_out = run.train_fraction == 1 and run.eval.initial_states == "held-out"
            return replace(
                config,
                seed=run.seed,
                train_fraction=run.train_fraction,
                env=run.env,
                policy=replace(run.policy, checkpoint=None),
                eval=replace(run.eval, initial_states="all") if nothing_held_out else run.eval,
            )
    return config


def _refuse_repeats(arguments: Sequence[str]) -> None:
    """The later one would silently replace the earlier, and with env.kwargs all of its pairs."""
    seen: set[str] = set()
    for argument in arguments:
        name = argument.partition("=")[0].replace("_", "-")
        if name.startswith("--") and name in seen:
            raise ValueError(
                f"{name} was given twice; several values go behind one: --env.kwargs suite=libero_10 task_ids=[0,3]"
            )
        seen.add(name)


def _train(arguments: list[str]) -> Callable[[], object]:
    config = parse_train(arguments)
    from vla_train.loop import finish, set_up

    return partial(finish, set_up(config))


def _evaluate(arguments: list[str]) -> Callable[[], object]:
    config = parse_evaluate(arguments)
    from vla_train.evaluation.of_checkpoint import CheckpointEvaluation

    return CheckpointEvaluation(config).play


def _report(arguments: list[str]) -> Callable[[], object]:
    run = tyro.cli(
        Annotated[Path, tyro.conf.Positional, tyro.conf.arg(name="run", help="Folder of a run.")],
        prog="python -m vla_train report",
        description="Write RUN/report.html, one self-contained page.",
        args=arguments,
    )
    if not (run / "config.json").is_file():
        raise ValueError(f"{run} is not the folder of a run: it has no config.json")
    from vla_train.report import write_report

    page = write_report(run)  # here, where damaged files are errors in what was given
    return lambda: print(f"report: {page}")


def _fail(message: str) -> NoReturn:
    print(f"error: {message}", file=sys.stderr)
    raise SystemExit(2)
