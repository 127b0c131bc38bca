"""One machine, without Ray: what `distributed.ray` offers, in this process.

Env groups are threads or processes (`env.worker`), the policy that samples is an object, and pushing weights copies tensors.
"""

from collections.abc import Callable

from vla_train.policy.base import RolloutPolicy


def make_rollout_policy(factory: Callable[[], RolloutPolicy]) -> RolloutPolicy:
    """The policy that samples: a copy of its own, so that it never sees weights in the middle of an update."""
    return factory()
