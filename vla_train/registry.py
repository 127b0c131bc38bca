"""What the command line knows by name: policies, estimators and losses. Anything else is given as MODULE:FUNCTION.

Importing this imports none of them.
"""

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """Something that has a name."""

    function: str
    """MODULE:FUNCTION."""
    check: str | None = None
    """MODULE:FUNCTION that refuses options of a policy at once, before anything is started; None: there is none."""
    trainable: bool = True
    """Whether a policy can be trained and served: False for one that somebody else runs."""
    check_env: str | None = None
    """MODULE:FUNCTION that refuses an env that a policy does not fit, before its weights are read; None: there is none."""
    needs_group: bool = False
    """An estimator that compares the episodes of a group with each other: groups of one would teach nothing."""
    per_group: bool = False
    """An estimator that looks at one group at a time. A function of the user's says so by an attribute of this name."""


POLICIES: Mapping[str, Entry] = {
    "simplevla_oft": Entry(
        function="vla_train.policy.simplevla_oft.build:build_policy",
        check="vla_train.policy.simplevla_oft.build:check_options",
        check_env="vla_train.policy.simplevla_oft.build:check_env",
    ),
    "vllm": Entry(
        function="vla_train.policy.vllm.policy:build_policy",
        check="vla_train.policy.vllm.options:check_options",
        check_env="vla_train.policy.simplevla_oft.build:check_env",
    ),
    "remote": Entry(
        function="vla_train.policy.remote.policy:build_policy",
        check="vla_train.policy.remote.policy:check_options",
        trainable=False,
    ),
}
"""`policy.factory`; see `policy.base.PolicyFactory`."""

ESTIMATORS: Mapping[str, Entry] = {
    "grpo": Entry(function="vla_train.algo.advantages:grpo", needs_group=True, per_group=True),
    "rloo": Entry(function="vla_train.algo.advantages:rloo", needs_group=True, per_group=True),
    "reinforce++": Entry(function="vla_train.algo.advantages:reinforce_plus_plus", needs_group=True),
    "reinforce": Entry(function="vla_train.algo.advantages:reinforce"),
}
"""`algo.advantage`; see `algo.advantages`."""

LOSSES: Mapping[str, Entry] = {
    "clipped": Entry(function="vla_train.algo.losses:clipped"),
    "cross-entropy": Entry(function="vla_train.algo.losses:cross_entropy"),
}
"""`algo.loss`; see `algo.losses.Loss`."""


def is_trainable(policy: str) -> bool:
    """Whether `policy.factory` names something that `train`, `sft` and `serve` take."""
    return policy not in POLICIES or POLICIES[policy].trainable


def require_known(name: str, table: Mapping[str, Entry], *, option: str) -> None:
    """Refuse what is neither a name of the table nor looks like MODULE:FUNCTION.

    Raises:
        ValueError: The message names what there is.
    """
    module, _, function = name.partition(":")
    if name not in table and not (module and function):
        raise ValueError(f"{option} must be one of {', '.join(table)}, or MODULE:FUNCTION, got {name!r}")


def load(name: str, table: Mapping[str, Entry], *, option: str) -> Callable[..., Any]:
    """The function of that name.

    Raises:
        ValueError: There is no such module or function. An error inside the module itself is passed on.
    """
    require_known(name, table, option=option)
    module_name, _, function_name = (table[name].function if name in table else name).partition(":")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise
        raise ValueError(f"{option} {name!r}: there is no module {error.name!r}") from None
    function = getattr(module, function_name, None)
    if not callable(function):
        raise ValueError(f"{option} {name!r}: {module_name} has no function {function_name!r}")
    return function
