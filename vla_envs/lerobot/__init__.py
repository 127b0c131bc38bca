"""The envs as LeRobot's own commands take them: importing this package registers `vla_libero` with LeRobot.

    lerobot-eval --env.discover_packages_path=vla_envs.lerobot --env.type=vla_libero --env.task=libero_10 --policy.path=...

Raises:
    MissingDependencyError: LeRobot is not installed.
"""

from vla_envs.lerobot.config import VlaLiberoEnv

__all__ = ["VlaLiberoEnv"]
