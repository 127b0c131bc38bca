"""When an episode counts as a success: what `env.success` says.

An end is not a success: a walker that falls ends its episode too. So what the env says of success is taken where it says
anything, and where it does not, the user is asked. An episode succeeds if the env says so after any of its actions. Of an env
that plays chunks only the sum of a chunk's rewards is known: for `terminated` it stands for the last one.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from vla_train.config import EnvConfig
from vla_train.envs.shard import EnvFaultError
from vla_train.types import on_host

_USUAL_KEYS = ("success", "is_success")
_INFO = "info:"


def info_key(config: EnvConfig) -> str | None:
    """The key of `info` that tells, where the config names one; None if it is to be found out, or is not asked."""
    return config.success.removeprefix(_INFO) if config.success.startswith(_INFO) else None


def find_info_key(info: Mapping[str, Any], config: EnvConfig) -> str:
    """The key of `info` that tells of success, for `auto`.

    Args:
        info: What the env says after a step.

    Raises:
        ValueError: It says nothing of success.
    """
    for key in _USUAL_KEYS:
        if key in info or key in info.get("final_info", {}):
            return key
    raise ValueError(
        f"{config.id} does not say whether an episode succeeds (no info['success'] or info['is_success']): set env.success to "
        "terminated (episodes that end by themselves, with a positive last reward), to return (with env.success-return), "
        "or to info:KEY"
    )


def says_success(info: Mapping[str, Any], key: str, *, ended: bool) -> bool:
    """What the info of one env says after a step.

    Raises:
        EnvFaultError: The episode has ended, and the info says nothing; or what it says is no answer.
    """
    if key not in info:
        if ended:
            raise EnvFaultError(f"an episode ended without info[{key!r}]: set env.success to what tells of success")
        return False
    return _answer(info[key], key)


def say_success(info: Mapping[str, Any], key: str, *, ended: np.ndarray) -> np.ndarray:
    """The same of all N slots of a vector env, (N,) bool; `ended` (N,) bool."""
    says, known = np.zeros(len(ended), bool), np.zeros(len(ended), bool)
    for source, slots in ((info, ~ended), (info, ended), (info.get("final_info", {}), ended)):
        if key in source:
            told = slots & np.asarray(source.get(f"_{key}", np.ones(len(ended), bool)), bool)
            says[told] = [_answer(value, key) for value in np.asarray(on_host(source[key]))[told]]
            known |= told
    if (ended & ~known).any():
        raise EnvFaultError(f"an episode ended without info[{key!r}]: set env.success to what tells of success")
    return says


def _answer(value: Any, key: str) -> bool:
    """Yes or no; None is no."""
    value = np.asarray(on_host(value))
    if value.size == 1 and value.item() in (None, False, True):  # 0 and 1 are those, NaN is not
        return bool(value.item())
    raise EnvFaultError(f"info[{key!r}] is {value}: true, false, 1 and 0 tell of success")
