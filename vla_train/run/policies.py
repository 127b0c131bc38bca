"""The policies of a run: the one that is trained, and the one that plays, which may be the same."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from vla_train.config import PolicyConfig
from vla_train.policy.base import PolicyFactory, RolloutPolicy, TrainablePolicy
from vla_train.types import EnvDescription


@dataclass(frozen=True, kw_only=True, slots=True)
class Policies:
    """What a run trains and plays with."""

    trained: TrainablePolicy
    sampler: RolloutPolicy
    """Decides in the envs; takes the trained weights where it is another one."""
    close: Callable[[], None]
    """Ends what runs in other processes, and gives back what they hold."""


def build_policies(config: PolicyConfig, factory: PolicyFactory, env: EnvDescription, *, seed: int, separate: bool) -> Policies:
    """Build them.

    Args:
        config: Which policy, and where the one that plays runs.
        factory: Builds either of them.
        env: What they play.
        seed: Of random weights.
        separate: Whether the one that plays is another one: nobody may sample from weights that change, or that are spread
            over ranks.
    """
    separate = separate or config.worker == "ray"
    trained = factory(config, env, seed=seed)
    if not separate:
        return Policies(trained=trained, sampler=trained, close=_closing(trained))
    use_gpu = next(trained.trainable_module().parameters()).device.type == "cuda"
    sampler, close = build_sampler(partial(factory, config, env, seed=seed), config, use_gpu=use_gpu)
    return Policies(trained=trained, sampler=sampler, close=close)


def build_sampler(
    build: Callable[[], RolloutPolicy], config: PolicyConfig, *, use_gpu: bool | None
) -> tuple[RolloutPolicy, Callable[[], None]]:
    """A policy that plays, in this process or as replicas on nodes of a Ray cluster, and what ends it.

    Args:
        build: Builds it, wherever it runs.
        config: Says where, and how many there are.
        use_gpu: Whether replicas need a GPU each; None where that is the cluster's choice.
    """
    if config.worker != "ray":
        policy = build()
        return policy, _closing(policy)
    from vla_train.distributed.ray_policy import make_rollout_policy

    replicas = make_rollout_policy(build, replicas=config.replicas, use_gpu=use_gpu)
    return replicas, replicas.close


def _closing(policy: RolloutPolicy) -> Callable[[], None]:
    """What ends a policy of this process: nothing, unless it holds what must be given back."""
    close: Callable[[], None] = getattr(policy, "close", lambda: None)
    return close
