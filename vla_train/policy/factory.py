"""What builds a run's policy, and what refuses what it cannot play, by the name that `policy.factory` gives."""

from vla_train.config import PolicyConfig
from vla_train.policy.base import PolicyFactory
from vla_train.registry import POLICIES, load
from vla_train.types import EnvDescription


def policy_factory(config: PolicyConfig) -> PolicyFactory:
    """What `policy.factory` names. Options that it can refuse without an env are refused here, before anything is started.

    Raises:
        ValueError: There is no such factory, or the policy cannot become what the options ask for.
    """
    entry = POLICIES.get(config.factory)
    if entry is not None and entry.check is not None:
        load(entry.check, POLICIES, option="policy.factory")(config)
    return load(config.factory, POLICIES, option="policy.factory")


def check_env(config: PolicyConfig, env: EnvDescription) -> None:
    """Refuse an env that the policy would not fit, where that can be told without its weights.

    Raises:
        ValueError: It does not fit; the message says what to change.
    """
    entry = POLICIES.get(config.factory)
    if entry is not None and entry.check_env is not None:
        load(entry.check_env, POLICIES, option="policy.factory")(config, env)
