"""The command line: parses and checks everything before it imports torch or a simulator.

    python -m vla_train [train|collect|sft|eval|serve|export|report|bench] [options]

`train` is the default command. Options are generated from `vla_train.config`; a recipe gives their defaults.
"""

import logging
import os
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import zip_longest
from pathlib import Path
from typing import Annotated, NoReturn

import tyro

from vla_train.bench.config import BenchConfig
from vla_train.config import DEMO_CHECKPOINT, EvaluateConfig, PolicyConfig, TrainConfig
from vla_train.config_file import RunConfig, read_config, read_run_config
from vla_train.config_json import RENAMED, for_another_env, without_demo
from vla_train.demonstrations.config import CollectConfig
from vla_train.errors import RunError, gpu_too_small
from vla_train.export_config import ExportConfig
from vla_train.from_scratch.config import FromScratchConfig
from vla_train.protocols import PROTOCOLS, with_protocol
from vla_train.recipes import DEFAULT_RECIPE, FROM_SCRATCH, RECIPES
from vla_train.recipes.demo import demo
from vla_train.serving.config import ServeConfig
from vla_train.sft.config import SftConfig
from vla_train.suite_names import without_suite


def _recipe_lines(recipes: Mapping[str, Callable[[], object]] = RECIPES) -> str:
    return "\n".join(f"  {name:<9} {recipe.__doc__}" for name, recipe in recipes.items())


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
{_recipe_lines()}
{_recipe_lines(FROM_SCRATCH)}  (train only)

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

Every option of a command: python -m vla_train COMMAND --help
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


def parse_train(arguments: Sequence[str]) -> TrainConfig:
    """The config of a training run: a recipe, a file on top of it, options on top of both.

    Raises:
        ValueError: Recipe or file is unknown or cannot work, it needs a checkpoint, or an option was given twice or has
            another name by now.
        SystemExit: An option is unknown, or its value cannot work; the reason was printed.
    """
    arguments = list(arguments)
    defaults, source = _train_defaults(arguments)
    return tyro.cli(
        TrainConfig,
        prog="python -m vla_train train",
        description=f"Train with GRPO.\n\nThe defaults shown are those of the {source}; --recipe NAME takes another:\n"
        + f"{_recipe_lines()}\n{_recipe_lines(FROM_SCRATCH)}"
        + f"\n\n{_CONFIG_HELP}",
        default=defaults,
        args=arguments,
    )


def _train_defaults(arguments: list[str]) -> tuple[TrainConfig, str]:
    """What options of a run come on top of, and its name: `--recipe` and `--config`, which are taken out of `arguments`."""
    _refuse_names(arguments)
    recipe, file = _take(arguments, "--recipe"), _take(arguments, "--config")
    if recipe in FROM_SCRATCH:
        raise ValueError(f"recipe {recipe} is several commands in one, with options of their own: only train takes it")
    if recipe is not None and recipe not in RECIPES:
        raise ValueError(f"unknown recipe {recipe!r}: choose one of {', '.join((*RECIPES, *FROM_SCRATCH))}")
    if file is None:
        recipe = recipe or DEFAULT_RECIPE
        defaults, source = RECIPES[recipe](), f"recipe {recipe!r}"
    else:
        defaults, source = read_config(Path(file), defaults=RECIPES[recipe]() if recipe else TrainConfig()), f"file {file}"
    if _value_of(arguments, "--env.id") is not None:
        defaults = for_another_env(defaults)
    if _value_of(arguments, "--policy.size") is not None:
        defaults = without_demo(defaults)
    return defaults, source


def parse_bench(arguments: Sequence[str]) -> BenchConfig:
    """What to measure: a run, named as `parse_train` has it, and for how long.

    Raises:
        ValueError, SystemExit: As for `parse_train`.
    """
    arguments = list(arguments)
    defaults, source = _train_defaults(arguments)
    return tyro.cli(
        BenchConfig,
        prog="python -m vla_train bench",
        description="Measure how fast this machine plays and learns with the options of train, in about two minutes, and say "
        f"what limits it. No folder is made.\n\nThe defaults shown are those of the {source}; --recipe NAME takes another:\n"
        + _recipe_lines()
        + f"\n\n{_CONFIG_HELP}",
        default=BenchConfig.of_run(defaults),
        args=arguments,
    )


_CONFIG_HELP = (
    "--config FILE takes options from a file, JSON or TOML, as the config.json of a run holds them. Options given here come "
    "on top; what the file leaves out is the recipe's where one is named, else the default."
)


def parse_sft(arguments: Sequence[str]) -> SftConfig:
    """The config of a run of supervised training: a file, and options on top.

    Raises:
        ValueError: The file cannot be read, or an option was given twice or has another name by now.
        SystemExit: An option is unknown, or its value cannot work; the reason was printed.
    """
    arguments = list(arguments)
    _refuse_names(arguments)
    file, data = _take(arguments, "--config"), _value_of(arguments, "--data")
    defaults = SftConfig(data=tyro.MISSING if data is None else Path(data))
    if file is not None:
        defaults = read_config(Path(file), defaults=defaults)
    if _value_of(arguments, "--env.id") is not None:
        defaults = replace(defaults, env=replace(defaults.env, kwargs={}))
    return tyro.cli(
        SftConfig,
        prog="python -m vla_train sft",
        description="Teach a policy by demonstrations: cross-entropy on the tokens of their actions.\n\n--config FILE takes "
        "options from a file, JSON or TOML, as the config.json of a run holds them. Options given here come on top.",
        default=defaults,
        args=arguments,
    )


def parse_evaluate(arguments: Sequence[str]) -> EvaluateConfig:
    """The config of an evaluation: a checkpoint inside a run takes that run's options; a file and options come on top.

    Raises:
        ValueError: The file or the run's config cannot be read, or an option was given twice or has another name by now.
        SystemExit: An option is unknown, or its value cannot work; the reason was printed.
    """
    arguments = list(arguments)
    _refuse_names(arguments)
    file = _take(arguments, "--config")
    return tyro.cli(
        EvaluateConfig,
        prog="python -m vla_train eval",
        description="Play a checkpoint, and write success rates per task and videos. The checkpoint of a run takes "
        "that run's options as defaults: name it to see them here.\n\n--config FILE takes options from a file, JSON or TOML, "
        "as the config.json of a run holds them. Options given here come on top.",
        default=_with_protocol(_with_suites(_evaluate_defaults(arguments, file), arguments), arguments),
        args=arguments,
    )


def _evaluate_defaults(arguments: Sequence[str], file: str | None) -> EvaluateConfig:
    """What the run of the checkpoint was told, and the file on top of it."""
    checkpoint, url = _value_of(arguments, "--checkpoint"), _value_of(arguments, "--policy.url")
    if url is None and _value_of(arguments, "--policy.factory") != "remote":
        config = EvaluateConfig(checkpoint=tyro.MISSING if checkpoint is None else checkpoint)
    else:  # a server, which has the weights
        config = EvaluateConfig(policy=PolicyConfig(factory="remote", url=url))
    run = None if checkpoint is None else _config_of_run(checkpoint)
    if file is not None:
        run = read_config(Path(file), defaults=run or TrainConfig(eval=config.eval))
        config = replace(config, display=run.display)
    if run is None:
        return config
    nothing_held_out = run.train_fraction == 1 and run.eval.initial_states == "held-out"
    return replace(
        config,
        seed=run.seed,
        train_fraction=run.train_fraction,
        split_seed=run.split_seed,
        env=run.env,
        policy=_policy_of_run(run.policy) if url is None else replace(config.policy, chunk_size=run.policy.chunk_size),
        rollout=run.rollout,
        eval=replace(run.eval, initial_states="all") if nothing_held_out else run.eval,
    )


def _policy_of_run(policy: PolicyConfig) -> PolicyConfig:
    """For checkpoints of a run: what its start lacked, they hold."""
    return replace(policy, checkpoint=None, companion=None, adapters="auto", random_weights=False)


def _with_suites(config: EvaluateConfig, arguments: Sequence[str]) -> EvaluateConfig:
    """Without the suite that a run was told to play, where others are asked for."""
    if all(argument.partition("=")[0] != "--suites" for argument in arguments):
        return config
    if (_value_of(arguments, "--suites") or "--").startswith("--"):
        raise ValueError("--suites needs one or more names, such as libero_spatial libero_goal+pro")
    return without_suite(config)


def _with_protocol(config: EvaluateConfig, arguments: Sequence[str]) -> EvaluateConfig:
    asked = _value_of(arguments, "--protocol")
    name = next((name for name in PROTOCOLS if name == asked), None)  # what is unknown is refused with the other options
    return config if name is None else with_protocol(config, name)


def _config_of_run(checkpoint: str) -> RunConfig | None:
    """The config of the run that holds a checkpoint, or is named itself, or that the demo is for; None where there is none."""
    if checkpoint == DEMO_CHECKPOINT:
        return demo()
    folder = Path(checkpoint).resolve()
    for candidate in (folder, *folder.parents[:3]):
        file = candidate / "config.json"
        if file.is_file() and (candidate / "checkpoints").is_dir():
            return read_run_config(file)
    return None


def _take(arguments: list[str], option: str) -> str | None:
    """The value of an option, which is taken out of `arguments`; None where it was not given.

    Raises:
        ValueError: It has no value.
    """
    value = _value_of(arguments, option)
    for index, argument in enumerate(arguments):
        if argument.partition("=")[0] == option:
            if value is None:
                wanted = f"a name: choose one of {', '.join((*RECIPES, *FROM_SCRATCH))}" if option == "--recipe" else "a file"
                raise ValueError(f"{option} needs {wanted}")
            del arguments[index : index + (1 if "=" in argument else 2)]
            break
    return value


def _value_of(arguments: Sequence[str], option: str) -> str | None:
    for argument, following in zip_longest(arguments, arguments[1:]):
        name, equals, value = argument.partition("=")
        if name == option:
            return value if equals else following
    return None


def _refuse_names(arguments: Sequence[str]) -> None:
    """Refuse an option under a name that it no longer has, and one given twice.

    The later of two would silently replace the earlier, and with env.kwargs all of its pairs.
    """
    renamed = {f"--{old.replace('_', '-')}": f"--{new.replace('_', '-')}" for old, new in RENAMED.items()}
    seen: set[str] = set()
    for argument in arguments:
        name = argument.partition("=")[0].replace("_", "-")
        if name in renamed:
            raise ValueError(f"{name} is now called {renamed[name]}")
        if name.startswith("--") and name in seen:
            raise ValueError(
                f"{name} was given twice; several values go behind one: --env.kwargs suite=libero_10 task_ids=[0,3]"
            )
        seen.add(name)


def parse_from_scratch(arguments: Sequence[str]) -> FromScratchConfig:
    """The config of a recipe that begins with demonstrations: the recipe, a file on top of it, options on top of both.

    Raises:
        ValueError, SystemExit: As for `parse_train`.
    """
    arguments = list(arguments)
    _refuse_names(arguments)
    recipe, file = _take(arguments, "--recipe"), _take(arguments, "--config")
    defaults = FROM_SCRATCH[recipe or ""]()
    if _value_of(arguments, "--env.id") is not None:
        defaults = replace(defaults, suite=None, detail=None, image_size=None)
    if file is not None:
        defaults = read_config(Path(file), defaults=defaults)
    return tyro.cli(
        FromScratchConfig,
        prog=f"python -m vla_train train --recipe {recipe}",
        description="From nothing to a policy that GRPO made good, in stages: an expert's demonstrations (collect), supervised "
        "training (sft), GRPO (train), and an evaluation of start and end on held-out initial states. The same command goes on "
        f"where it was interrupted; a stage that is done is not done again.\n\n{_CONFIG_HELP}",
        default=defaults,
        args=arguments,
        config=(tyro.conf.SuppressFixed,),
    )


def _train(arguments: list[str]) -> Callable[[], object]:
    if _value_of(arguments, "--recipe") in FROM_SCRATCH:
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


def parse_serve(arguments: Sequence[str]) -> ServeConfig:
    """What to serve: the checkpoint of a run takes the policy's options of that run.

    Raises:
        ValueError: The run's config cannot be read, its policy decides something else than LIBERO's actions, or an option was
            given twice or has another name by now.
        SystemExit: An option is unknown, or its value cannot work; the reason was printed.
    """
    _refuse_names(arguments)
    checkpoint = _value_of(arguments, "--checkpoint")
    defaults = ServeConfig(checkpoint=tyro.MISSING if checkpoint is None else checkpoint)
    run = None if checkpoint is None else _config_of_run(checkpoint)
    if run is not None:
        control = run.env.kwargs.get("control", "osc_delta")
        if control != "osc_delta":
            raise ValueError(f"{checkpoint} decides actions of control={control}, and clients play LIBERO's own, osc_delta")
        defaults = replace(defaults, policy=_policy_of_run(run.policy))
    return tyro.cli(
        ServeConfig,
        prog="python -m vla_train serve",
        description="Serve a checkpoint over WebSocket to the clients of vla-eval or openpi, which play LIBERO. Several are "
        "answered together. GET /health says whether it is there. Ctrl-C or SIGTERM ends it.",
        default=defaults,
        args=arguments,
    )


def _serve(arguments: list[str]) -> Callable[[], object]:
    config = parse_serve(arguments)
    from vla_train.serving.server import PolicyServer

    return PolicyServer(config).run


def parse_collect(arguments: Sequence[str]) -> CollectConfig:
    """The config of a collection of demonstrations.

    Raises:
        ValueError: An option was given twice or has another name by now.
        SystemExit: An option is unknown, or its value cannot work; the reason was printed.
    """
    _refuse_names(arguments)
    return tyro.cli(
        CollectConfig,
        prog="python -m vla_train collect",
        description="Let an expert play tasks, and write what succeeds as a dataset in LeRobot's format (v3). The same command "
        "goes on with a dataset that is not complete.",
        args=arguments,
    )


def _collect(arguments: list[str]) -> Callable[[], object]:
    config = parse_collect(arguments)
    from vla_train.demonstrations.collect import Collection

    return Collection(config).collect


def _export(arguments: list[str]) -> Callable[[], object]:
    _refuse_names(arguments)
    config = tyro.cli(
        ExportConfig,
        prog="python -m vla_train export",
        description="Write a checkpoint whole, in the published layout, for tools that read no adapters: these are merged into "
        "the weights of their base, on the CPU. Adapters on an FP8 or NF4 base were trained on its rounded weights, and are "
        "merged into the exact ones: the two policies differ by that rounding.",
        args=arguments,
    )
    from vla_train.export import Export

    return Export(config).write


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
