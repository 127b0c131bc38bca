"""Whose error it is when an env fails: a refusal says in one line what to change; a bug keeps its traceback.

A refusal is what the trainer says of an env that it cannot use, and what an installed env says of its arguments. All else, and
whatever an env of the user's own (MODULE:ID) raises, is a bug: only its traceback says where.
"""

import traceback

import gymnasium as gym

from vla_train.config import EnvConfig
from vla_train.envs.shard import EnvFaultError

_OWN_PACKAGE = __name__.partition(".")[0]


class EnvRefusal(ValueError):  # noqa: N818
    """An env cannot be used as configured; the message names it, and says what to change."""


class EnvPackageMissing(ImportError):  # noqa: N818
    """An env needs a package that is not installed; the message names both."""


def as_refusal(error: Exception, config: EnvConfig) -> EnvRefusal | EnvPackageMissing | None:
    """What to say of an env that cannot be made; None where its error is a bug."""
    text = str(error) if config.id in str(error) else f"{config.id}: {error}"
    if isinstance(error, ModuleNotFoundError) and error.name == config.id.partition(":")[0]:
        return EnvPackageMissing(f"{text}; is the folder of {error.name}.py on the PYTHONPATH?")
    if isinstance(error, ModuleNotFoundError | gym.error.DependencyNotInstalled):
        return EnvPackageMissing(text)
    if isinstance(error, gym.error.Error):
        return EnvRefusal(text)
    if isinstance(error, TypeError):
        unknown = any(f"unexpected keyword argument '{name}'" in str(error) for name in config.kwargs)
        return EnvRefusal(f"{config.id} does not take all of env.kwargs: {error}") if unknown else None
    if not isinstance(error, ValueError | ImportError) or not _is_meant(error, config):
        return None
    return EnvPackageMissing(text) if isinstance(error, ImportError) else EnvRefusal(text)


def is_bug(error: BaseException) -> bool:
    """Whether a worker's fault is an error in somebody's code, whose traceback is worth reading."""
    if isinstance(error, EnvFaultError | EnvRefusal | EnvPackageMissing):
        return False
    return error.__traceback__ is not None or bool(getattr(error, "__notes__", None))  # notes: tracebacks of other processes


def _is_meant(error: Exception, config: EnvConfig) -> bool:
    """Whether it was raised on purpose: by the trainer, by Gymnasium's `make`, or by an env that is not the user's own."""
    place = traceback.extract_tb(error.__traceback__)[-1]
    if not (place.line or "").startswith("raise "):
        return False
    innermost = [frame for frame, _ in traceback.walk_tb(error.__traceback__)][-1]
    module = innermost.f_globals.get("__name__", "")
    by_maker = module.partition(".")[0] == _OWN_PACKAGE or module == gym.make.__module__
    return by_maker or ":" not in config.id
