"""The command line: what it offers, and how it refuses what cannot work."""

import contextlib
import dataclasses
import json
import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest

import vla_envs
import vla_train
from vla_train.bench.config import BenchConfig
from vla_train.cli import main
from vla_train.command_line import parse_evaluate, parse_serve, parse_train
from vla_train.config import EvaluateConfig, TrainConfig
from vla_train.config_json import config_to_json
from vla_train.demonstrations.config import CollectConfig
from vla_train.recipes import RECIPES
from vla_train.serving.config import ServeConfig
from vla_train.sft.config import SftConfig

SMALL_ENV = ("--env.id", "reach_env:Reach-v0", "--env.envs-per-worker", "1", "--env.success", "terminated")


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Runs a command that must be refused, and returns its message in one line."""

    def run(*arguments: str) -> str:
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            main(arguments)
        captured = capsys.readouterr()
        message = captured.out + captured.err
        assert stop.value.code == 2, message
        assert "Traceback" not in message
        return " ".join(message.replace("│", " ").split())

    return run


@pytest.fixture
def help_of(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    def run(*arguments: str) -> str:
        monkeypatch.setenv("COLUMNS", "100")
        with contextlib.suppress(SystemExit):
            main(arguments)
        return capsys.readouterr().out

    return run


def options_of(config: type, prefix: str = "--") -> list[str]:
    """Every option that a config class becomes."""
    names: list[str] = []
    for f in dataclasses.fields(config):
        name = f.name.replace("_", "-")
        nested = isinstance(f.type, type) and dataclasses.is_dataclass(f.type)
        names += options_of(f.type, f"{prefix}{name}.") if nested else [prefix + name]
    return names


# --- help


def test_the_overview_names_every_command_and_recipe(help_of: Callable[..., str]) -> None:
    overview = help_of("--help")
    assert overview == help_of("help") == help_of("-h")
    for word in ("train", "sft", "eval", "serve", "collect", "export", "report", "bench", *RECIPES):
        assert f"\n  {word} " in overview
    assert "--config FILE" in overview


def test_the_versions_of_both_packages_are_told(help_of: Callable[..., str]) -> None:
    assert help_of("--version") == f"vla-train {vla_train.__version__}, vla-envs {vla_envs.__version__}\n"


@pytest.mark.parametrize(
    ("command", "config"),
    [
        *(("train", TrainConfig), ("sft", SftConfig), ("eval", EvaluateConfig), ("collect", CollectConfig)),
        *(("bench", BenchConfig), ("serve", ServeConfig)),
    ],
)
def test_help_lists_every_option_with_its_text(command: str, config: type, help_of: Callable[..., str]) -> None:
    lines = [line.strip("│╭╮╰╯ \n") for line in help_of(command, "--help").splitlines()]
    options = options_of(config)
    assert len(options) > 25
    for option in options:
        places = [place for place, line in enumerate(lines) if line.split(" ")[0].rstrip(",") == option]
        assert len(places) == 1, f"{option} is listed {len(places)} times"
        if re.search(r"\S {2,}[A-Z]", lines[places[0]]):  # beside it
            continue
        text = lines[places[0] + 1]
        if text.startswith("--"):  # the option's negation on a line of its own
            text = lines[places[0] + 2]
        assert text
        assert not text.startswith(("-", "(default")), f"{option} has no text"


def test_help_shows_the_defaults_of_the_recipe_that_was_asked_for(help_of: Callable[..., str]) -> None:
    assert "(default: 1.0)" in help_of("train", "--help")
    paper = help_of("train", "--recipe", "paper", "--help")
    assert "'paper'" in paper
    assert "(default: 5e-06)" in paper
    assert "(default: 5e-06)" not in help_of("train", "--help")


def test_report_help_names_its_argument(help_of: Callable[..., str]) -> None:
    assert "Folder of a run" in help_of("report", "--help")


# --- parsing


def test_without_options_the_default_recipe_is_trained() -> None:
    assert parse_train([]) == RECIPES["demo"]()


@pytest.mark.parametrize("spelling", [["--recipe", "one-gpu"], ["--recipe=one-gpu"]])
def test_a_recipe_can_be_named_and_its_options_changed(spelling: list[str]) -> None:
    config = parse_train([*spelling, "--policy.checkpoint", "folder", "--optim.learning-rate", "3e-5"])
    expected = RECIPES["one-gpu"]()
    assert config.optim.learning_rate == 3e-5
    assert dataclasses.replace(config, policy=expected.policy, optim=expected.optim) == expected


def test_given_env_arguments_replace_those_of_the_recipe() -> None:
    assert parse_train([]).env.kwargs["suite"] == "libero_90"
    config = parse_train(["--env.kwargs", "suite=libero_10", "task_ids=[0,3]"])
    assert config.env.kwargs == {"suite": "libero_10", "task_ids": "[0,3]"}


@pytest.mark.parametrize("spelling", [["--env.id", "Other-v0"], ["--env.id=Other-v0"]])
def test_another_env_starts_without_the_arguments_of_the_recipe(spelling: list[str]) -> None:
    assert parse_train(spelling).env.kwargs == {}


def test_the_papers_protocol_can_be_chosen() -> None:
    options = ["--train-fraction", "1", "--eval.initial-states", "all"]
    config = parse_train(["--recipe", "paper", "--policy.checkpoint", "folder", *options])
    assert (config.train_fraction, config.eval.initial_states) == (1.0, "all")


def test_an_evaluation_takes_the_options_of_the_run_that_its_checkpoint_belongs_to(small_run, tmp_path: Path) -> None:
    run = small_run(seed=7, train_fraction=0.5)
    step = run.output / "checkpoints" / "step_000002"
    step.mkdir(parents=True)
    (run.output / "config.json").write_text(json.dumps(config_to_json(run)))
    for named in (run.output, step, step / "policy"):
        config = parse_evaluate(["--checkpoint", str(named), "--eval.videos", "3"])
        assert (config.seed, config.train_fraction, config.env) == (7, 0.5, run.env)
        assert config.policy == dataclasses.replace(run.policy, checkpoint=None)
        assert config.eval == dataclasses.replace(run.eval, videos=3)
    (run.output / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"config\.json is neither JSON nor TOML"):
        parse_evaluate([f"--checkpoint={run.output}"])


def test_a_run_that_held_nothing_out_is_evaluated_on_all_initial_states(small_run) -> None:
    run = small_run(train_fraction=1.0)
    (run.output / "checkpoints").mkdir(parents=True)
    (run.output / "config.json").write_text(json.dumps(config_to_json(run)))
    for options, states in (([], "all"), (["--eval.initial-states", "train"], "train")):
        config = parse_evaluate(["--checkpoint", str(run.output), *options])
        assert (config.train_fraction, config.eval.initial_states) == (1.0, states)


# --- what is refused before anything starts


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--rollout.group-size", "1"], "rollout.group_size must be at least 2, got 1"),
        (["--env.num-workers", "0"], "env.num_workers must be at least 1, got 0"),
        (["--env.envs-per-worker", "-2"], "env.envs_per_worker must be at least 1, got -2"),
        (["--rollout.temperature", "0"], "rollout.temperature must be positive"),
        (["--rollout.temperature", "nan"], "rollout.temperature"),
        (["--train-fraction", "1.5"], "train_fraction must lie in (0, 1]"),
        (["--iterations", "two"], "--iterations"),
        (["--algo.advantage", "ppo"], "'ppo'"),
        (["--nonsense", "1"], "--nonsense"),
        (["--env.num-groups", "3"], "--env.num-groups is now called --env.num-workers"),
        (["--env.envs_per_group=3"], "--env.envs-per-group is now called --env.envs-per-worker"),
        (["eval", "--checkpoint", "x", "--env.num-groups=3"], "--env.num-groups is now called --env.num-workers"),
        (["--config"], "--config needs a file"),
        (["--config", "no/such/file"], "no/such/file cannot be read: No such file or directory"),
        (["--env.kwargs", "suite"], "expected KEY=VALUE, got 'suite'"),
        (["--env.kwargs", "suite=libero_10", "--env.kwargs", "task_ids=[0]"], "--env.kwargs was given twice"),
        (["--recipe", "nope"], "unknown recipe 'nope': choose one of demo, one-gpu, gpu-48gb, gpu-24gb, paper"),
        (["--recipe"], "--recipe needs a name"),
        (["--recipe", "paper"], "policy.size openvla-7b goes on from a trained policy: name one with --policy.checkpoint"),
        (["--policy.size", "openvla-7b"], "policy.size openvla-7b goes on from a trained policy"),
        (["nope"], "unknown command 'nope': choose one of train, collect, sft, eval, serve, export, report, bench"),
        (["eval"], "--checkpoint"),
        (["report", "/"], "has no config.json"),
        (["collect", "--suite", "libero_10", "--env.kwargs", "suite=libero_90"], "suite was given twice"),
        (["collect", "--suite", "nope"], "nope"),
        (["collect", "--suite", "libero_10", "--task-ids", "12"], "12"),
        (["collect", "--env.id", "Nope-v0"], "Nope"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_options_are_refused_by_name(arguments: list[str], named: str, refused: Callable[..., str]) -> None:
    assert named in refused(*arguments)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--env.id", "Nope-v0"], "Nope"),
        (["--env.id", "no_such_module:Nope-v0"], "no_such_module"),
        (["--env.id", "reach_env:Reach-v0", "--env.kwargs", "speed=3"], "'speed'"),
        (
            ["--env.id", "reach_env:Reach-v0", "--env.success", "terminated", "--env.image-key", "camera"],
            "no image 'camera' in the observation",
        ),
        (
            ["--env.id", "reach_env:ReachPixels-v0", "--env.success", "terminated", "--env.image-key", "camera"],
            "set env.instruction",
        ),
        (["--env.id", "CartPole-v1", "--env.image-key", "render", "--env.instruction", "balance"], "continuous"),
        (
            ["--env.id", "reach_env:Reach-v0", "--env.success", "terminated", "--policy.checkpoint", "no/such/folder"],
            "no/such/folder",
        ),
        (
            ["--env.id", "reach_env:Reach-v0", "--env.success", "terminated", "--eval.episodes-per-task", "0"],
            "eval.episodes_per_task",
        ),
        (["--env.id", "reach_env:Reach-v0", "--env.success", "terminated", "--trackers", "trackio"], "pip install trackio"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_run_that_cannot_work_leaves_no_folder(
    options: list[str], named: str, refused: Callable[..., str], tmp_path: Path
) -> None:
    message = refused("train", *options, "--env.num-workers", "1", "--env.envs-per-worker", "1", "--output", f"{tmp_path}/run")
    assert named in message
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("pairs", "named"),
    [
        (["suite=nope"], "unknown suite 'nope'"),
        (["suite=libero_goal", "task_ids=[10]"], "libero_goal, which has 0..9"),
        (["cameras=[top]"], "cameras"),
        (["brightness=3"], "'brightness'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_arguments_of_libero_leave_no_folder(
    pairs: list[str], named: str, refused: Callable[..., str], tmp_path: Path
) -> None:
    assert named in refused("train", "--env.kwargs", *pairs, "--output", f"{tmp_path}/run")
    assert not (tmp_path / "run").exists()


def test_an_output_that_is_a_file_is_refused(refused: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    for output in (tmp_path / "file", tmp_path / "file" / "run"):
        assert "choose another output" in refused("train", *SMALL_ENV, "--output", str(output))
    assert (tmp_path / "file").read_text() == "mine"


def test_a_device_file_is_no_output(refused: Callable[..., str]) -> None:
    assert "choose another output" in refused("train", *SMALL_ENV, "--output", "/dev/full")


def test_an_evaluation_of_nothing_leaves_no_folder(refused: Callable[..., str], tmp_path: Path) -> None:
    empty = tmp_path / "run" / "checkpoints"
    empty.mkdir(parents=True)
    assert "holds no complete checkpoint" in refused("eval", *SMALL_ENV, "--checkpoint", str(tmp_path / "run"))
    assert "no/such/folder" in refused(
        "eval", *SMALL_ENV, "--checkpoint", "no/such/folder", "--output", f"{tmp_path}/results", "--eval.episodes-per-task", "1"
    )
    assert not (tmp_path / "results").exists()


def test_an_evaluation_that_leaves_no_episode_is_refused(
    refused: Callable[..., str], small_checkpoint: Path, tmp_path: Path
) -> None:
    evaluation = ["eval", *SMALL_ENV, "--checkpoint", str(small_checkpoint), "--output", f"{tmp_path}/results"]
    assert "held-out" in refused(*evaluation, "--train-fraction", "1")
    assert "eval.episodes_per_task" in refused(*evaluation, "--policy.chunk-size", "2")
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize(
    ("before", "after"),
    [({}, "egl"), ({"DISPLAY": ":0"}, None), ({"WAYLAND_DISPLAY": "wayland-0"}, None), ({"MUJOCO_GL": "osmesa"}, "osmesa")],
)
def test_mujoco_draws_without_a_display_where_there_is_none(
    before: dict[str, str], after: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("DISPLAY", "WAYLAND_DISPLAY", "MUJOCO_GL"):
        monkeypatch.delenv(name, raising=False)
    for name, value in before.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit):
        main(["train", "--nonsense"])
    assert os.environ.get("MUJOCO_GL") == after


# --- servers


URL = ("--policy.url", "ws://localhost:8000")
REMOTE = ("--policy.factory", "remote", *URL)


def test_an_evaluation_plays_a_server_without_a_checkpoint() -> None:
    config = parse_evaluate(URL)
    assert config == parse_evaluate(REMOTE)
    assert (config.checkpoint, config.policy.factory, config.policy.url) == (None, "remote", "ws://localhost:8000")
    as_others = parse_evaluate([*URL, "--protocol", "rlinf"])
    assert (as_others.policy, as_others.env.max_episode_steps) == (config.policy, 512)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("train", *REMOTE), "policy.factory remote cannot be trained, only evaluated"),
        (("bench", *REMOTE), "policy.factory remote cannot be trained, only evaluated"),
        (("sft", "--data", "x", *REMOTE), "policy.factory remote cannot be trained, only evaluated"),
        (("serve", "--checkpoint", "x", *REMOTE), "policy.factory remote is served by somebody else already"),
        (("eval", "--checkpoint", "x", *REMOTE), "--checkpoint x contradicts --policy.url"),
        (("eval", *REMOTE, "--eval.temperatures", "1"), "how a server samples is set where it runs"),
        (("eval", "--policy.factory", "remote"), "policy.factory remote needs its server's address"),
        (("eval", "--policy.factory", "simplevla_oft", *URL), "is for policy.factory remote, got simplevla_oft"),
        (("eval", "--policy.url", "localhost"), "policy.url must be ws://HOST:PORT or wss://HOST:PORT, got 'localhost'"),
        (("serve", "--checkpoint", "demo", "--protocol", "grpc"), "grpc"),
        (("serve", "--checkpoint", "demo", "--port", "70000"), "port must lie in 0 to 65535"),
        (("serve", "--checkpoint", "no/such/folder"), "no/such/folder"),
        (("serve",), "checkpoint"),
    ],
)
def test_what_a_server_is_not_for_is_refused(arguments: tuple[str, ...], named: str, refused: Callable[..., str]) -> None:
    assert named in refused(*arguments)


def test_what_is_served_takes_the_options_of_its_run(refused: Callable[..., str], tmp_path: Path) -> None:
    run = RECIPES["demo"]()
    assert parse_serve(["--checkpoint", "demo"]).policy == dataclasses.replace(run.policy, checkpoint=None)
    (tmp_path / "checkpoints").mkdir()
    other = dataclasses.replace(run.env, kwargs={"control": "joint_position"})
    (tmp_path / "config.json").write_text(json.dumps(config_to_json(dataclasses.replace(run, env=other))))
    assert "decides actions of control=joint_position" in refused("serve", "--checkpoint", str(tmp_path))
