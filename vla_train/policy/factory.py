"""The function that builds a run's policy, by the name that `policy.factory` gives."""

from vla_train.config import PolicyConfig
from vla_train.policy.base import PolicyFactory
from vla_train.registry import POLICIES, load


def policy_factory(config: PolicyConfig) -> PolicyFactory:
    """What `policy.factory` names. Options that it can refuse without an env are refused here, before anything is started.

    Raises:
        ValueError: There is no such factory, or the policy cannot become what the options ask for.
    """
    entry = POLICIES.get(config.factory)
    if entry is not None and entry.check is not None:
        load(entry.check, POLICIES, option="policy.factory")(config)
    return load(config.factory, POLICIES, option="policy.factory")
