"""`eval --protocol`: what each of them sets, what may still be changed, and the figures that they are of."""

import dataclasses
from collections import Counter
from typing import get_args

import numpy as np
import pytest

from vla_train.command_line import parse_evaluate
from vla_train.config import EnvConfig, EvaluateConfig, ProtocolName
from vla_train.pipeline.episodes import evaluation_plan
from vla_train.protocols import NUM_TASKS, PROTOCOLS, with_protocol
from vla_train.types import EnvDescription

NAMES = [name for name in get_args(ProtocolName) if name != "none"]
TABLE = {
    # temperature, images, time limits of spatial, object, goal, 10, 90
    "simplevla-rl": (0.0, "openvla", (512,) * 5),
    "rlinf": (1.6, "rlinf", (512,) * 5),
    "openvla-oft": (0.0, "openvla", (220, 280, 300, 520, 400)),
}


def libero(num_tasks: int = 10) -> EnvDescription:
    bound = np.ones(7, np.float32)
    states = dict.fromkeys(range(num_tasks), 50)
    return EnvDescription(
        observations={}, action_low=-bound, action_high=bound, task_ids=tuple(states), num_init_states=states, suite="libero_10"
    )


@pytest.mark.parametrize("name", NAMES)
def test_a_protocol_sets_what_its_figures_are_of(name: ProtocolName) -> None:
    temperature, images, limits = TABLE[name]
    config = parse_evaluate(["--checkpoint", "someone/policy", "--protocol", name, "--env.kwargs", "suite=libero_10"])
    assert config.protocol == name
    assert config.eval.temperatures == (temperature,)
    assert (config.policy.images, config.policy.jpeg) == (images, "auto")
    assert config.env.kwargs == {"suite": "libero_10"}
    assert tuple(PROTOCOLS[name].time_limit(suite) for suite in NUM_TASKS) == limits
    assert config.env.max_episode_steps in (None, limits[3])


def test_every_protocol_has_a_row() -> None:
    assert list(PROTOCOLS) == list(TABLE) == NAMES


def test_openvlas_time_limits_are_those_that_the_env_has_of_itself() -> None:
    from vla_envs.libero.suites import TIME_LIMITS

    assert {suite: PROTOCOLS["openvla-oft"].time_limit(suite) for suite in NUM_TASKS} == TIME_LIMITS


@pytest.mark.parametrize("name", NAMES)
def test_a_protocol_plays_each_initial_state_of_each_task_exactly_once(name: ProtocolName) -> None:
    config = with_protocol(EvaluateConfig(checkpoint="someone/policy"), name)
    plan = evaluation_plan(libero(), config.eval, train_fraction=config.train_fraction, split_seed=config.split_seed)
    (specs,) = plan.values()
    starts = Counter((spec.task_id, spec.init_state_id) for spec in specs)
    assert starts == dict.fromkeys(((task, state) for task in range(10) for state in range(50)), 1)
    assert len({(spec.group_id, spec.sample_id) for spec in specs}) == 500


def test_what_an_episode_draws_depends_on_its_start_alone() -> None:
    config = with_protocol(EvaluateConfig(checkpoint="someone/policy"), "rlinf")
    few = dataclasses.replace(config.eval, episodes_per_task=7)
    all_of_them, first = (
        {
            (spec.task_id, spec.init_state_id): spec
            for spec in evaluation_plan(libero(), e, train_fraction=0.8, split_seed=0)[1.6]
        }
        for e in (config.eval, few)
    )
    assert len(first) == 70
    assert all(all_of_them[start] == spec for start, spec in first.items())


def test_options_come_on_top_of_a_protocol() -> None:
    options = ["--eval.temperatures", "0", "--eval.episodes-per-task", "5", "--policy.images", "openvla"]
    config = parse_evaluate(["--checkpoint", "someone/policy", "--protocol=rlinf", *options])
    assert (config.eval.temperatures, config.eval.episodes_per_task, config.policy.images) == ((0.0,), 5, "openvla")
    assert config.eval.initial_states == "all"


def test_a_protocol_leaves_the_env_at_liberos_own_but_for_the_suite_and_the_machine() -> None:
    kwargs = {"suite": "libero_goal", "detail": "fast", "image_size": "128", "task_ids": "[1]", "device": "cpu"}
    config = with_protocol(EvaluateConfig(checkpoint="x", env=EnvConfig(kwargs=kwargs, num_workers=3)), "openvla-oft")
    assert config.env == EnvConfig(kwargs={"suite": "libero_goal", "device": "cpu"}, num_workers=3)


def test_an_unknown_protocol_is_refused_with_those_that_there_are(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse_evaluate(["--checkpoint", "someone/policy", "--protocol", "lerobot"])
    assert all(name in capsys.readouterr().err for name in NAMES[:1])


def test_a_protocol_that_python_was_given_wrongly_is_refused() -> None:
    with pytest.raises(ValueError, match="protocol must be one of none, simplevla-rl, rlinf, openvla-oft, got 'lerobot'"):
        EvaluateConfig(checkpoint="x", protocol="lerobot")  # type: ignore[arg-type]
