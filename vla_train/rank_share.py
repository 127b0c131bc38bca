"""What one of several ranks plays: its share of an iteration's groups, on as many envs as these can use."""

from dataclasses import replace

from vla_train.config import EnvConfig, RolloutConfig
from vla_train.trainer.parallel import Ranks


def share_of_rank(config: RolloutConfig, ranks: Ranks) -> RolloutConfig:
    """What one of several ranks plays. Ranks meet at each update, so none plays ahead: their states stay simple."""
    if ranks.size == 1:
        return config
    if config.groups_per_iteration % ranks.size:
        raise ValueError(f"rollout.groups_per_iteration {config.groups_per_iteration} must be a multiple of {ranks.size} ranks")
    return replace(config, groups_per_iteration=config.groups_per_iteration // ranks.size, deterministic=True)


def useful_slots(env: EnvConfig, rollout: RolloutConfig) -> EnvConfig:
    """As many envs as can play at once where nothing is played ahead."""
    episodes = rollout.groups_per_iteration * rollout.group_size
    return replace(env, envs_per_group=min(env.envs_per_group, -(-episodes // env.num_groups)))
