"""A config is complete, explained, survives JSON, and is refused at once when it cannot work."""

import ast
import dataclasses
import inspect
import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import pytest

from vla_train.config import (
    AlgoConfig,
    EnvConfig,
    EvalConfig,
    EvaluateConfig,
    OptimConfig,
    PolicyConfig,
    RolloutConfig,
    TrainConfig,
)
from vla_train.config_json import config_from_json, config_to_json
from vla_train.pipeline.episodes import PromptStream, evaluation_episodes
from vla_train.recipes import DEFAULT_RECIPE, RECIPES, demo, one_gpu, paper

CONFIGS = (TrainConfig, EvaluateConfig, EnvConfig, PolicyConfig, RolloutConfig, AlgoConfig, OptimConfig, EvalConfig)


def accumulating(**changes: Any) -> OptimConfig:
    return OptimConfig(**{"accumulate_during_rollout": True, "minibatch_trajectories": 512, **changes})


BAD_VALUES = [
    (EnvConfig, {"id": ""}, "env.id"),
    (EnvConfig, {"num_workers": 0}, "env.num_workers"),
    (EnvConfig, {"envs_per_worker": 0}, "env.envs_per_worker"),
    (EnvConfig, {"max_episode_steps": 0}, "env.max_episode_steps"),
    (EnvConfig, {"step_timeout_s": 0.0}, "env.step_timeout_s"),
    (EnvConfig, {"max_restarts": -1}, "env.max_restarts"),
    (EnvConfig, {"success_return": math.nan}, "env.success_return"),
    (PolicyConfig, {"chunk_size": 0}, "policy.chunk_size"),
    (PolicyConfig, {"lora_rank": -1}, "policy.lora_rank"),
    (PolicyConfig, {"replicas": 0}, "policy.replicas"),
    (PolicyConfig, {"replicas": 2}, "policy.worker=ray"),
    (RolloutConfig, {"group_size": 0}, "rollout.group_size"),
    (TrainConfig, {"rollout": RolloutConfig(group_size=1)}, "rollout.group_size .* algo.advantage grpo compares"),
    (EnvConfig, {"success": "maybe"}, "env.success"),
    (AlgoConfig, {"advantage": "gae"}, "algo.advantage must be one of grpo, .* or MODULE:FUNCTION, got 'gae'"),
    (AlgoConfig, {"loss": "module:"}, "algo.loss"),
    (PolicyConfig, {"factory": "pi0"}, "policy.factory must be one of simplevla_oft"),
    (RolloutConfig, {"groups_per_iteration": 0}, "rollout.groups_per_iteration"),
    (RolloutConfig, {"temperature": 0.0}, "rollout.temperature"),
    (RolloutConfig, {"temperature": math.nan}, "rollout.temperature"),
    (RolloutConfig, {"temperature": math.inf}, "rollout.temperature"),
    (RolloutConfig, {"final_temperature": 0.0}, "rollout.final_temperature"),
    (RolloutConfig, {"max_policy_batch": 0}, "rollout.max_policy_batch"),
    (RolloutConfig, {"max_wait_s": -0.1}, "rollout.max_wait_s"),
    (RolloutConfig, {"min_success_rate": -0.1}, "rollout.min_success_rate"),
    (RolloutConfig, {"max_success_rate": 1.1}, "max_success_rate"),
    (RolloutConfig, {"min_success_rate": 0.8, "max_success_rate": 0.2}, "rollout.min_success_rate"),
    (RolloutConfig, {"max_attempts": 0.5}, "rollout.max_attempts"),
    (RolloutConfig, {"max_staleness": 2}, "rollout.max_staleness"),
    (AlgoConfig, {"clip_low": 0.0}, "algo.clip_low"),
    (AlgoConfig, {"clip_low": 1.5}, "algo.clip_low"),
    (AlgoConfig, {"clip_high": -0.1}, "algo.clip_high"),
    (OptimConfig, {"learning_rate": 0.0}, "optim.learning_rate"),
    (OptimConfig, {"warmup_steps": -1}, "optim.warmup_steps"),
    (OptimConfig, {"beta1": 1.0}, "optim.beta1"),
    (OptimConfig, {"beta2": -0.1}, "optim.beta2"),
    (OptimConfig, {"weight_decay": -0.01}, "optim.weight_decay"),
    (OptimConfig, {"max_grad_norm": 0.0}, "optim.max_grad_norm"),
    (OptimConfig, {"minibatch_trajectories": 0}, "optim.minibatch_trajectories"),
    (OptimConfig, {"microbatch_rows": -1}, "optim.microbatch_rows"),
    (OptimConfig, {"epochs": 0}, "optim.epochs"),
    (TrainConfig, {"optim": OptimConfig(accumulate_during_rollout=True)}, "one AdamW step .* at least 512 .* got 1 and 128"),
    (TrainConfig, {"optim": accumulating(epochs=2)}, "accumulate_during_rollout .* optim.epochs 1 .* got 2 and 512"),
    (TrainConfig, {"optim": accumulating(), "rollout": RolloutConfig(max_staleness=1)}, "needs rollout.max_staleness 0, got 1"),
    (TrainConfig, {"optim": accumulating(), "algo": AlgoConfig(advantage="reinforce++")}, r"\(grpo, rloo\), got reinforce\+\+"),
    (EvalConfig, {"every": -1}, "eval.every"),
    (EvalConfig, {"episodes_per_task": -1}, "eval.episodes_per_task"),
    (EvalConfig, {"videos": -1}, "eval.videos"),
    (TrainConfig, {"iterations": 0}, "iterations"),
    (TrainConfig, {"seed": -1}, "seed"),
    (TrainConfig, {"train_fraction": 0.0}, "train_fraction"),
    (TrainConfig, {"train_fraction": 1.2}, "train_fraction"),
    (TrainConfig, {"train_fraction": 1.0}, "held-out"),
    (TrainConfig, {"checkpoint_every": 0}, "checkpoint_every"),
    (TrainConfig, {"keep_checkpoints": 0}, "keep_checkpoints"),
    (TrainConfig, {"trackers": ("tensorboard", "paper")}, "trackers"),
    (EvaluateConfig, {"checkpoint": "here", "train_fraction": 1.0}, "held-out"),
    (EvaluateConfig, {"checkpoint": "here", "seed": -1}, "seed"),
    (EvaluateConfig, {"checkpoint": "here", "policy": PolicyConfig(checkpoint="there")}, "policy.checkpoint"),
]


@pytest.mark.parametrize(("config", "values", "named"), BAD_VALUES, ids=[f"{c.__name__}-{v}" for c, v, _ in BAD_VALUES])
def test_a_value_that_cannot_work_is_refused_by_name(config: type, values: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        config(**values)


@pytest.mark.parametrize("config", CONFIGS)
def test_a_choice_that_a_field_does_not_have_is_refused_with_those_it_has(config: type) -> None:
    choices = [f for f in dataclasses.fields(config) if get_origin(f.type) is Literal]
    required = {"checkpoint": "here"} if config is EvaluateConfig else {}
    for f in choices:
        with pytest.raises(ValueError, match=rf"{f.name} must be one of {get_args(f.type)[0]}.*'paper'"):
            config(**required, **{f.name: "paper"})


def field_texts(config: type) -> dict[str, str]:
    """Text under each field of a class, those that it inherits included."""
    texts: dict[str, str] = {}
    for owner in config.__mro__[-2::-1]:
        (node,) = ast.parse(inspect.getsource(owner)).body
        assert isinstance(node, ast.ClassDef)
        texts |= {
            first.target.id: second.value.value
            for first, second in zip(node.body, node.body[1:], strict=False)
            if isinstance(first, ast.AnnAssign) and isinstance(second, ast.Expr) and isinstance(second.value, ast.Constant)
        }
    return texts


@pytest.mark.parametrize("config", CONFIGS)
def test_every_field_is_explained(config: type) -> None:
    sections = {"env", "policy", "rollout", "algo", "optim", "eval", "augment"}
    names = {f.name for f in dataclasses.fields(config)} - sections
    texts = field_texts(config)
    assert names <= texts.keys()
    assert all(len(texts[name]) > 20 for name in names), "a text too short to explain anything"
    assert not any("\n" in texts[name] for name in names), "--help would break the line there again"


UNITS = (
    "workers",
    *("seconds", "env steps", "updates", "iterations", "episodes", "decisions", "actions", "groups", "restarts", "checkpoints"),
    *("adamw steps", "l2 norm", "passes", "envs", "videos", "copies", "rank", "0 to 1", "times", "rewards", "[0, 1)", "rows"),
)
WITHOUT_UNIT = {"seed", "split_seed", "temperature", "learning_rate", "weight_decay", "clip_low", "clip_high"}


@pytest.mark.parametrize("config", CONFIGS)
def test_every_number_says_what_it_counts(config: type) -> None:
    texts = field_texts(config)
    for f in dataclasses.fields(config):
        if f.type in (int, float, int | None) and f.name not in WITHOUT_UNIT:
            assert any(unit in texts[f.name].lower() for unit in UNITS), f"{f.name}: {texts[f.name]}"


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_survives_json(name: str) -> None:
    config = RECIPES[name]()
    assert config_from_json(json.loads(json.dumps(config_to_json(config))), defaults=TrainConfig()) == config


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_has_a_run_folder_of_its_own_name_and_a_line_of_help(name: str) -> None:
    assert RECIPES[name]().output == Path("runs") / name
    assert 20 < len(RECIPES[name].__doc__ or "") < 110


def test_every_field_survives_json_when_changed() -> None:
    config = TrainConfig(
        output=Path("elsewhere"),
        resume=False,
        trackers=("tensorboard", "wandb"),
        env=EnvConfig(id="Other-v0", kwargs={"a": "[1, 2]", "b": "text=x"}, instruction="go", max_episode_steps=7),
        policy=PolicyConfig(checkpoint="folder", statistics_key="key"),
        rollout=RolloutConfig(deterministic=True),
        algo=AlgoConfig(advantage="rloo"),
        optim=accumulating(cpu_offload=True),
        eval=EvalConfig(initial_states="all"),
    )
    assert config_from_json(json.loads(json.dumps(config_to_json(config))), defaults=TrainConfig()) == config


def test_a_config_of_another_version_is_refused_by_its_unknown_field() -> None:
    data = config_to_json(TrainConfig())
    data["rollout"]["kl_penalty"] = 0.1
    with pytest.raises(
        ValueError, match=r"unknown field rollout\.kl_penalty.*another version.*rollout has groups_per_iteration"
    ):
        config_from_json(data, defaults=TrainConfig())


def test_a_config_that_cannot_work_is_refused_also_when_read_from_json() -> None:
    data = config_to_json(TrainConfig())
    data["rollout"]["group_size"] = 1
    with pytest.raises(ValueError, match="group_size"):
        config_from_json(data, defaults=TrainConfig())


def test_fields_missing_in_json_take_their_defaults() -> None:
    read = config_from_json({"seed": 3, "env": {"id": "Other-v0"}}, defaults=TrainConfig())
    assert read == TrainConfig(seed=3, env=EnvConfig(id="Other-v0"))


PUBLISHED = [
    ("prompts per iteration", lambda c: c.rollout.groups_per_iteration, 64),
    ("rollouts per prompt", lambda c: c.rollout.group_size, 8),
    ("temperature", lambda c: c.rollout.temperature, 1.6),
    ("lowest success rate kept", lambda c: c.rollout.min_success_rate, 0.1),
    ("highest success rate kept", lambda c: c.rollout.max_success_rate, 0.9),
    ("on policy", lambda c: c.rollout.max_staleness, 0),
    ("advantage", lambda c: c.algo.advantage, "grpo"),
    ("reward", lambda c: c.algo.reward, "success"),
    ("lower clip", lambda c: c.algo.clip_low, 0.2),
    ("higher clip", lambda c: c.algo.clip_high, 0.28),
    ("aggregation", lambda c: c.algo.aggregation, "seq-mean-token-mean"),
    ("learning rate", lambda c: c.optim.learning_rate, 5e-6),
    ("no warm-up", lambda c: c.optim.warmup_steps, 0),
    ("beta1", lambda c: c.optim.beta1, 0.9),
    ("beta2", lambda c: c.optim.beta2, 0.999),
    ("weight decay", lambda c: c.optim.weight_decay, 0.01),
    ("gradient clip", lambda c: c.optim.max_grad_norm, 1.0),
    ("mini-batch", lambda c: c.optim.minibatch_trajectories, 128),
    ("epochs", lambda c: c.optim.epochs, 1),
    ("all weights", lambda c: c.policy.lora_rank, 0),
    ("time limit", lambda c: c.env.max_episode_steps, 512),
    ("chunk", lambda c: c.policy.chunk_size, 8),
    ("model", lambda c: c.policy.size, "openvla-7b"),
]


@pytest.mark.parametrize(("value", "expected"), [pair[1:] for pair in PUBLISHED], ids=[pair[0] for pair in PUBLISHED])
def test_the_paper_recipe_has_the_published_value(value: Any, expected: Any) -> None:
    assert value(paper()) == expected


def test_the_paper_recipe_makes_four_updates_per_iteration() -> None:
    config = paper()
    episodes = config.rollout.groups_per_iteration * config.rollout.group_size
    assert episodes // config.optim.minibatch_trajectories * config.optim.epochs == 4


def test_the_default_recipe_runs_on_a_cpu_and_the_others_start_from_a_checkpoint() -> None:
    assert RECIPES[DEFAULT_RECIPE] is demo
    assert (demo().policy.checkpoint, demo().env.id) == ("demo", "Libero-v0")
    assert one_gpu().policy.lora_rank > 0
    assert {one_gpu().policy.size, paper().policy.size} == {"openvla-7b"}


def played_states(config: TrainConfig, num_states: int) -> tuple[set[int], set[int]]:
    """Initial states of task 0 that a run trains on, and those it evaluates on."""
    split = {"train_fraction": config.train_fraction, "split_seed": config.split_seed}
    stream = PromptStream([0], {0: num_states}, group_size=config.rollout.group_size, seed=config.seed, **split)
    trained = {next(stream)[0].init_state_id for _ in range(2 * num_states)}
    return trained, {
        spec.init_state_id for spec in evaluation_episodes([0], {0: num_states}, config.eval, temperature=0.0, **split)
    }


@pytest.mark.parametrize("name", RECIPES)
def test_no_recipe_evaluates_on_what_it_trains_on(name: str) -> None:
    trained, evaluated = played_states(RECIPES[name](), 50)
    assert trained
    assert evaluated
    assert not trained & evaluated


def test_the_papers_protocol_trains_and_evaluates_on_all_initial_states() -> None:
    config = dataclasses.replace(
        paper(), train_fraction=1.0, eval=dataclasses.replace(paper().eval, initial_states="all", episodes_per_task=0)
    )
    assert played_states(config, 50) == (set(range(50)), set(range(50)))


def test_reading_the_command_line_needs_neither_torch_nor_a_simulator() -> None:
    code = (
        "import sys; from vla_train.command_line import parse_train; "
        "parse_train(['--recipe', 'paper', '--policy.checkpoint', 'x']); "
        "print(sorted({'torch', 'transformers', 'gymnasium', 'mujoco', 'ray', 'matplotlib'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"


def test_a_temperature_changes_evenly_up_to_the_last_iteration() -> None:
    rollout = RolloutConfig(temperature=2.0, final_temperature=0.5)
    assert [rollout.temperature_of(iteration, iterations=4) for iteration in range(4)] == [2.0, 1.5, 1.0, 0.5]
    assert rollout.temperature_of(0, iterations=1) == 2.0
    assert RolloutConfig(temperature=2.0).temperature_of(3, iterations=4) == 2.0
