"""Which groups teach something (dynamic sampling, DAPO, arXiv 2503.14476)."""

from vla_train.config import AlgoConfig, RolloutConfig
from vla_train.types import RETURN_ROUNDING, Group

_ROUNDING = 1e-9


def has_signal(group: Group, rollout: RolloutConfig, algo: AlgoConfig) -> bool:
    """Whether a group is worth an update.

    With `algo.reward` success: its success rate lies between `rollout.min_success_rate` and `max_success_rate`, inclusive.
    With returns, where there may be no success: its returns differ. A group of one is always kept: its signal is in how it
    compares with other groups.
    """
    if len(group.trajectories) == 1:
        return True
    if algo.reward == "return":
        returns = [trajectory.episode_return for trajectory in group.trajectories]
        return max(returns) - min(returns) > RETURN_ROUNDING * max(map(abs, returns))
    return rollout.min_success_rate - _ROUNDING <= group.success_rate <= rollout.max_success_rate + _ROUNDING
