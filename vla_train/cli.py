"""The command line: parses and checks everything before it imports torch or a simulator.

    python -m vla_train [train|collect|sft|eval|serve|export|report|bench] [options]

`train` is the default command. What each is told: `command_line.py`.
"""

import logging
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from functools import partial
from importlib.metadata import version
from typing import NoReturn

from vla_train.command_line import (
    parse_bench,
    parse_collect,
    parse_evaluate,
    parse_export,
    parse_from_scratch,
    parse_report,
    parse_serve,
    parse_sft,
    parse_train,
    recipe_lines,
    value_of,
)
from vla_train.errors import RunError, gpu_too_small
from vla_train.recipes import DEFAULT_RECIPE, FROM_SCRATCH, RECIPES

_OVERVIEW = f"""\
Reinforcement learning of vision-language-action policies on any Gymnasium vector env.

usage: python -m vla_train [COMMAND] [OPTIONS]

commands:
  train     improve a policy by GRPO, playing and learning in turn (the default)
  collect   demonstrations by an expert, as a dataset in LeRobot's format
  sft       teach a policy by demonstrations: a start for train, which needs a policy that sometimes succeeds
  eval      play a checkpoint: success per task with confidence intervals, videos
  serve     let others' benchmarks play a checkpoint, over WebSocket: vla-eval or openpi
  export    a checkpoint whole, in the published layout: adapters merged into their base
  report    one HTML page about a run: curves, timeline, throughput, videos
  bench     how fast this machine plays and learns with the options of train, what limits it, and what to change

recipes (train or bench --recipe NAME; without one: {DEFAULT_RECIPE}; any option may still be changed):
{recipe_lines()}
{recipe_lines(FROM_SCRATCH)}  (train only)

files (train, bench, sft and eval --config FILE): options in JSON or TOML, as the config.json of a run holds them

examples:
  python -m vla_train
  python -m vla_train train --recipe one-gpu --policy.checkpoint CHECKPOINT --env.kwargs suite=libero_10
  python -m vla_train train --env.id InvertedPendulum-v5 --env.image-key render --env.instruction "balance the pole" \\
      --env.success return --env.success-return 50 --env.max-episode-steps 200 --output runs/pendulum
  python -m vla_train train --config runs/demo/config.json --output runs/again --seed 1
  python -m vla_train sft --data runs/demonstrations --env.kwargs suite=libero_90 task_ids=[33]
  python -m vla_train eval --checkpoint runs/demo --eval.episodes-per-task 0
  python -m vla_train eval --policy.factory remote --policy.url ws://localhost:8000 --policy.kwargs protocol=openpi
  python -m vla_train serve --checkpoint runs/demo --protocol vla-eval
  python -m vla_train eval --checkpoint CHECKPOINT --suites libero_spatial libero_goal+pro
  python -m vla_train export --checkpoint runs/one-gpu --output merged
  python -m vla_train collect --suite libero_90 --task-ids 33 --episodes-per-task 80
  python -m vla_train report runs/demo
  python -m vla_train bench --recipe one-gpu --policy.checkpoint CHECKPOINT

Every option of a command: python -m vla_train COMMAND --help     Versions: python -m vla_train --version
"""


def main(argv: Sequence[str] | None = None) -> None:
    """Run one command.

    An error is one line, after the traceback of an env's bug if it is one. The exit status is 2 where the command was refused
    before anything had begun, 1 where it could not go on, and 130 where it was interrupted.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments[:1] in (["-h"], ["--help"], ["help"]):
        print(_OVERVIEW, end="")
        return
    if arguments[:1] == ["--version"]:
        print(", ".join(f"{name} {version(name)}" for name in ("vla-train", "vla-envs")))
        return
    command = arguments.pop(0) if arguments and not arguments[0].startswith("-") else "train"
    commands = {
        "train": _train,
        "collect": _collect,
        "sft": _sft,
        "eval": _evaluate,
        "serve": _serve,
        "export": _export,
        "report": _report,
        "bench": _bench,
    }
    if command not in commands:
        _fail(f"unknown command {command!r}: choose one of {', '.join(commands)} (python -m vla_train --help)")
    _share_cores()
    _draw_without_display()
    _show_log()
    try:
        work = commands[command](arguments)
    except (ValueError, ImportError) as error:
        _fail(str(error))
    except KeyboardInterrupt:
        print("interrupted before anything had begun", file=sys.stderr)
        raise SystemExit(130) from None
    except (RunError, OSError) as error:
        _stop(error)
    except RuntimeError as error:
        _stop_out_of_memory(error)
    try:
        work()
    except (RunError, OSError) as error:
        _stop(error)
    except RuntimeError as error:
        _stop_out_of_memory(error)


def _share_cores() -> None:
    """Let threads of PyTorch that wait for each other sleep: spinning, they would take the cores from the simulators."""
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # read once, when PyTorch is imported


def _draw_without_display() -> None:
    """Let MuJoCo draw without a display where there is none: it would wait for one for ever."""
    if not os.environ.get("DISPLAY") and not os.environ.get("WAYLAND_DISPLAY"):
        os.environ.setdefault("MUJOCO_GL", "egl")  # read once, when MuJoCo or an env that draws with it is imported


def _show_log() -> None:
    """What takes long, and what went wrong and was put right, goes to standard error."""
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    for package in ("vla_envs", "vla_train"):
        logging.getLogger(package).setLevel(logging.INFO)


def _train(arguments: list[str]) -> Callable[[], object]:
    if value_of(arguments, "--recipe") in FROM_SCRATCH:
        from_scratch = parse_from_scratch(arguments)
        from vla_train.from_scratch.stages import FromScratch

        return FromScratch(from_scratch).run
    config = parse_train(arguments)
    from vla_train.loop import iterate, set_up

    return partial(iterate, set_up(config))


def _bench(arguments: list[str]) -> Callable[[], object]:
    config = parse_bench(arguments)
    from vla_train.bench.bench import Bench

    return Bench(config, recipes=tuple(RECIPES)).measure


def _sft(arguments: list[str]) -> Callable[[], object]:
    config = parse_sft(arguments)
    from vla_train.sft.loop import iterate, set_up

    return partial(iterate, set_up(config))


def _evaluate(arguments: list[str]) -> Callable[[], object]:
    config = parse_evaluate(arguments)
    if config.suites:
        from vla_train.evaluation.suites import SuitesEvaluation

        return SuitesEvaluation(config).play
    from vla_train.evaluation.of_checkpoint import CheckpointEvaluation

    return CheckpointEvaluation(config).play


def _serve(arguments: list[str]) -> Callable[[], object]:
    config = parse_serve(arguments)
    from vla_train.serving.server import PolicyServer

    return PolicyServer(config).run


def _collect(arguments: list[str]) -> Callable[[], object]:
    config = parse_collect(arguments)
    from vla_train.demonstrations.collect import Collection

    return Collection(config).collect


def _export(arguments: list[str]) -> Callable[[], object]:
    config = parse_export(arguments)
    from vla_train.export import Export

    return Export(config).write


def _report(arguments: list[str]) -> Callable[[], object]:
    run = parse_report(arguments)
    from vla_train.report import write_report

    page = write_report(run)  # here, where damaged files are errors in what was given
    return lambda: print(f"report: {page}")


def _stop_out_of_memory(error: RuntimeError) -> NoReturn:
    """End with one line where a GPU's memory was too small; any other error is raised again."""
    if type(error).__name__ != "OutOfMemoryError":  # torch's, which is not imported here
        raise error
    _stop(RunError(gpu_too_small(error)))


def _stop(error: Exception) -> NoReturn:
    """End a command that cannot go on, though it was right to begin it."""
    from vla_train.envs.bugs import is_bug
    from vla_train.envs.worker import WorkerError

    if isinstance(error, WorkerError) and error.__cause__ is not None and is_bug(error.__cause__):
        traceback.print_exception(error.__cause__)
    print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
    raise SystemExit(1)


def _fail(message: str) -> NoReturn:
    print(f"error: {message}", file=sys.stderr)
    raise SystemExit(2)
