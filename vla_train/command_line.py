"""What each command is told: options on top of a file, of a recipe, or of the run that a checkpoint belongs to.

Importing this needs neither torch nor a simulator. Options are generated from the configs: the text under a field is its help.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import zip_longest
from pathlib import Path
from typing import Annotated

import tyro

from vla_train.bench.config import BenchConfig
from vla_train.config import DEMO_CHECKPOINT, EvaluateConfig, PolicyConfig, TrainConfig
from vla_train.config_file import RunConfig, read_config, read_run_config
from vla_train.config_json import RENAMED, for_another_env, without_demo
from vla_train.demonstrations.config import CollectConfig
from vla_train.export_config import ExportConfig
from vla_train.from_scratch.config import FromScratchConfig
from vla_train.protocols import PROTOCOLS, with_protocol
from vla_train.recipes import DEFAULT_RECIPE, FROM_SCRATCH, RECIPES
from vla_train.recipes.demo import demo
from vla_train.serving.config import ServeConfig
from vla_train.sft.config import SftConfig
from vla_train.suite_names import without_suite

_CONFIG_HELP = (
    "--config FILE takes options from a file, JSON or TOML, as the config.json of a run holds them. Options given here come "
    "on top; what the file leaves out is the recipe's where one is named, else the default."
)


def recipe_lines(recipes: Mapping[str, Callable[[], object]] = RECIPES) -> str:
    """A line of help for each recipe."""
    return "\n".join(f"  {name:<16} {recipe.__doc__}" for name, recipe in recipes.items())


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
        + f"{recipe_lines()}\n{recipe_lines(FROM_SCRATCH)}"
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
    if value_of(arguments, "--env.id") is not None:
        defaults = for_another_env(defaults)
    if value_of(arguments, "--policy.size") is not None:
        defaults = without_demo(defaults)
    return defaults, source


def parse_from_scratch(arguments: Sequence[str]) -> FromScratchConfig:
    """The config of a recipe that begins with demonstrations: the recipe, a file on top of it, options on top of both.

    Raises:
        ValueError, SystemExit: As for `parse_train`.
    """
    arguments = list(arguments)
    _refuse_names(arguments)
    recipe, file = _take(arguments, "--recipe"), _take(arguments, "--config")
    defaults = FROM_SCRATCH[recipe or ""]()
    if value_of(arguments, "--env.id") is not None:
        env = replace(defaults.env, kwargs={})
        defaults = replace(defaults, suite=None, detail=None, image_size=None, env=env)
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
        + recipe_lines()
        + f"\n\n{_CONFIG_HELP}",
        default=BenchConfig.of_run(defaults),
        args=arguments,
    )


def parse_sft(arguments: Sequence[str]) -> SftConfig:
    """The config of a run of supervised training: a file, and options on top.

    Raises:
        ValueError: The file cannot be read, or an option was given twice or has another name by now.
        SystemExit: An option is unknown, or its value cannot work; the reason was printed.
    """
    arguments = list(arguments)
    _refuse_names(arguments)
    file, data = _take(arguments, "--config"), value_of(arguments, "--data")
    defaults = SftConfig(data=tyro.MISSING if data is None else Path(data))
    if file is not None:
        defaults = read_config(Path(file), defaults=defaults)
    if value_of(arguments, "--env.id") is not None:
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
    checkpoint, url = value_of(arguments, "--checkpoint"), value_of(arguments, "--policy.url")
    if url is None and value_of(arguments, "--policy.factory") != "remote":
        config = EvaluateConfig(checkpoint=tyro.MISSING if checkpoint is None else checkpoint)
    else:  # a server, which has the weights
        config = EvaluateConfig(policy=PolicyConfig(factory="remote", url=url))
    run = None if checkpoint is None else _config_of_run(checkpoint)
    if file is not None:
        run = read_run_config(Path(file), defaults=run or TrainConfig(eval=config.eval))
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
    if (value_of(arguments, "--suites") or "--").startswith("--"):
        raise ValueError("--suites needs one or more names, such as libero_spatial libero_goal+pro")
    return without_suite(config)


def _with_protocol(config: EvaluateConfig, arguments: Sequence[str]) -> EvaluateConfig:
    asked = value_of(arguments, "--protocol")
    name = next((name for name in PROTOCOLS if name == asked), None)  # what is unknown is refused with the other options
    return config if name is None else with_protocol(config, name)


def parse_serve(arguments: Sequence[str]) -> ServeConfig:
    """What to serve: the checkpoint of a run takes the policy's options of that run.

    Raises:
        ValueError: The run's config cannot be read, its policy decides something else than LIBERO's actions, or an option was
            given twice or has another name by now.
        SystemExit: An option is unknown, or its value cannot work; the reason was printed.
    """
    _refuse_names(arguments)
    checkpoint = value_of(arguments, "--checkpoint")
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


def parse_export(arguments: Sequence[str]) -> ExportConfig:
    """Which checkpoint to write whole, and where.

    Raises:
        ValueError, SystemExit: As for `parse_collect`.
    """
    _refuse_names(arguments)
    return tyro.cli(
        ExportConfig,
        prog="python -m vla_train export",
        description="Write a checkpoint whole, in the published layout, for tools that read no adapters: these are merged into "
        "the weights of their base, on the CPU. Adapters on an FP8 or NF4 base were trained on its rounded weights, and are "
        "merged into the exact ones: the two policies differ by that rounding.",
        args=arguments,
    )


def parse_report(arguments: Sequence[str]) -> Path:
    """The folder of the run to report on.

    Raises:
        ValueError: It is none.
        SystemExit: An option is unknown, or its value cannot work; the reason was printed.
    """
    run = tyro.cli(
        Annotated[Path, tyro.conf.Positional, tyro.conf.arg(name="run", help="Folder of a run.")],
        prog="python -m vla_train report",
        description="Write RUN/report.html, one self-contained page.",
        args=arguments,
    )
    if not (run / "config.json").is_file():
        raise ValueError(f"{run} is not the folder of a run: it has no config.json")
    return run


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
    value = value_of(arguments, option)
    for index, argument in enumerate(arguments):
        if argument.partition("=")[0] == option:
            if value is None:
                wanted = f"a name: choose one of {', '.join((*RECIPES, *FROM_SCRATCH))}" if option == "--recipe" else "a file"
                raise ValueError(f"{option} needs {wanted}")
            del arguments[index : index + (1 if "=" in argument else 2)]
            break
    return value


def value_of(arguments: Sequence[str], option: str) -> str | None:
    """The word behind an option, or behind its `=`; None where there is none."""
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
