"""`--config FILE`: a run, or a part of one, from JSON or TOML; what it cannot mean is refused by name."""

import dataclasses
import json
from pathlib import Path

import pytest

from vla_train.command_line import parse_evaluate, parse_train
from vla_train.config import EnvConfig, OptimConfig, RolloutConfig, TrainConfig
from vla_train.config_file import read_config
from vla_train.config_json import config_to_json
from vla_train.envs.factory import parse_kwargs
from vla_train.recipes import RECIPES
from vla_train.sft.config import SftConfig


@pytest.fixture
def write(tmp_path: Path):
    def write(text: str, name: str = "config.toml") -> str:
        (tmp_path / name).write_text(text)
        return str(tmp_path / name)

    return write


@pytest.mark.parametrize("name", RECIPES)
def test_the_config_of_a_run_gives_that_run_again(name: str, write) -> None:
    config = dataclasses.replace(RECIPES[name](), seed=7, trackers=("tensorboard", "wandb"))
    config = dataclasses.replace(config, policy=dataclasses.replace(config.policy, checkpoint="folder"))
    file = write(json.dumps(config_to_json(config)), "config.json")
    assert parse_train(["--config", file]) == parse_train([f"--config={file}"]) == config


def test_options_come_on_top_of_the_file(write) -> None:
    file = write("seed = 3\niterations = 7\n[rollout]\ngroup_size = 4\n")
    config = parse_train(["--iterations", "9", "--config", file])
    assert config == TrainConfig(seed=3, iterations=9, rollout=RolloutConfig(group_size=4))


def test_what_a_file_leaves_out_is_the_recipes_where_one_is_named(write) -> None:
    file = write("[optim]\nlearning_rate = 1\n[policy]\ncheckpoint = 'folder'\n")
    expected = RECIPES["one-gpu"]()
    config = parse_train(["--config", file, "--recipe", "one-gpu"])
    assert config.optim == dataclasses.replace(expected.optim, learning_rate=1.0)
    assert dataclasses.replace(config, optim=expected.optim, policy=expected.policy) == expected
    assert parse_train(["--config", file]).optim == OptimConfig(learning_rate=1.0)


def test_arguments_of_the_env_may_be_lists_and_numbers(write) -> None:
    file = write("[env.kwargs]\nsuite = 'libero_10'\ntask_ids = [0, 3]\nimage_size = 128\nfast = true\noptions = {a = 1.5}\n")
    kwargs = parse_train(["--config", file]).env.kwargs
    assert all(isinstance(value, str) for value in kwargs.values())
    parsed = {"suite": "libero_10", "task_ids": [0, 3], "image_size": 128, "fast": True, "options": {"a": 1.5}}
    assert parse_kwargs(kwargs) == parsed


def test_another_env_starts_without_the_arguments_of_the_recipe(write) -> None:
    file = write("[env]\nid = 'Other-v0'\n")
    assert parse_train(["--config", file, "--recipe", "demo"]).env.kwargs == {}
    same = write("[env]\nid = 'Libero-v0'\n")
    assert parse_train(["--config", same, "--recipe", "demo"]).env.kwargs == RECIPES["demo"]().env.kwargs


def test_an_evaluation_takes_the_options_of_a_file_over_those_of_the_run(small_run, write) -> None:
    run = small_run(seed=7, rollout={"max_policy_batch": 5, "max_wait_s": 0.5})
    (run.output / "checkpoints").mkdir(parents=True)
    (run.output / "config.json").write_text(json.dumps(config_to_json(run)))
    of_run = parse_evaluate(["--checkpoint", str(run.output)])
    assert of_run.rollout == run.rollout
    file = write("display = 'plain'\n[rollout]\nmax_policy_batch = 9\n[eval]\nvideos = 4\n")
    config = parse_evaluate(["--checkpoint", str(run.output), "--config", file, "--eval.episodes-per-task", "3"])
    assert (config.seed, config.env, config.display) == (7, run.env, "plain")
    assert config.rollout == dataclasses.replace(run.rollout, max_policy_batch=9)
    assert config.eval == dataclasses.replace(run.eval, videos=4, episodes_per_task=3)
    assert config.output is None


def test_an_evaluation_of_a_published_checkpoint_takes_a_whole_config(small_run, write) -> None:
    run = small_run()
    file = write(json.dumps(config_to_json(run)), "config.json")
    config = parse_evaluate(["--checkpoint", "owner/name", "--config", file])
    assert (config.checkpoint, config.env, config.eval) == ("owner/name", run.env, run.eval)
    assert config.policy == dataclasses.replace(run.policy, checkpoint=None)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("[rollout]\nkl_penalty = 0.1", "unknown field rollout.kl_penalty"),
        ("[reward]\nscale = 2", "unknown field reward"),
        ("[env]\nnum_groups = 2", "env.num_groups is now called env.num_workers"),
        ('{"env": {"envs_per_group": 2}}', "env.envs_per_group is now called env.envs_per_worker"),
        ("env = 3", "env must be a table of fields, got 3"),
        ("iterations = 'two'", "iterations must be a whole number, got 'two'"),
        ("iterations = 2.5", "iterations must be a whole number, got 2.5"),
        ("iterations = true", "iterations must be a whole number, got True"),
        ("resume = 1", "resume must be true or false, got 1"),
        ("output = 3", "output must be a text, got 3"),
        ("trackers = 'wandb'", "trackers must be a list of names, got 'wandb'"),
        ("[optim]\nlearning_rate = '1e-5'", "optim.learning_rate must be a number, got '1e-5'"),
        ("[env]\nkwargs = ['suite=libero_10']", "env.kwargs must be a table of arguments"),
        ("[env.kwargs]\nday = 2026-01-01", "env.kwargs.day must be"),
        ("[rollout]\ngroup_size = 1", "rollout.group_size must be at least 2, got 1"),
        ("[algo]\nadvantage = 'ppo'", "algo.advantage must be one of grpo"),
        ("[algo]\nadvantage = ['grpo']", "algo.advantage must be a text"),
        ("--iterations 3", "is neither JSON nor TOML"),
        ('{"seed": 3', "is neither JSON nor TOML"),
    ],
)
def test_a_file_that_cannot_work_is_refused_by_name_in_one_line(text: str, named: str, write) -> None:
    file = write(text)
    with pytest.raises(ValueError) as refusal:  # noqa: PT011
        parse_train(["--config", file])
    message = str(refusal.value)
    assert named in message
    assert file in message
    assert "\n" not in message


def test_a_file_that_is_not_there_or_no_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "picture").write_bytes(b"\xff\xd8\xff\xe0")
    for name in ("nothing", "picture", "."):
        with pytest.raises(ValueError, match="cannot be read"):
            parse_train(["--config", str(tmp_path / name)])


def test_fields_that_may_be_empty_take_null(write) -> None:
    file = write('{"env": {"instruction": null, "max_episode_steps": null}, "policy": {"checkpoint": null}}')
    defaults = TrainConfig(env=EnvConfig(instruction="go", max_episode_steps=7))
    assert read_config(Path(file), defaults=defaults) == TrainConfig()


def test_an_evaluation_takes_the_config_of_the_other_kind_of_run(small_run, write, tmp_path: Path) -> None:
    train = small_run(seed=7)
    sft = dataclasses.replace(SftConfig(data=tmp_path), seed=8, env=train.env, rollout=train.rollout)
    for run, other, name in ((train, sft, "train"), (sft, train, "sft")):
        folder = tmp_path / name
        (folder / "checkpoints").mkdir(parents=True)
        (folder / "config.json").write_text(json.dumps(config_to_json(run)))
        config = parse_evaluate(
            ["--checkpoint", str(folder), "--config", write(json.dumps(config_to_json(other)), f"of_{name}")]
        )
        assert (config.seed, config.eval, config.env) == (other.seed, other.eval, other.env)
        part = parse_evaluate(["--checkpoint", str(folder), "--config", write("[eval]\nvideos = 4\n", f"part_{name}")])
        assert (part.seed, part.eval) == (run.seed, dataclasses.replace(run.eval, videos=4))


def test_a_mark_of_the_byte_order_is_no_part_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "marked.json").write_text('{"seed": 5}', encoding="utf-8-sig")
    assert parse_train(["--config", str(tmp_path / "marked.json")]).seed == 5
