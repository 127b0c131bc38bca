"""A vector env as Stable-Baselines3 takes it; that library is imported when one is made."""

from typing import TYPE_CHECKING

import gymnasium as gym

from vla_envs.errors import MissingDependencyError

if TYPE_CHECKING:
    from vla_envs.vector.sb3_env import SB3Env


def as_sb3_env(envs: gym.vector.VectorEnv) -> "SB3Env":
    """A vector env as a `VecEnv` of Stable-Baselines3, without the texts of its observations: no policy there takes them.

    Infos, `terminal_observation` and `TimeLimit.truncated` are those of `DummyVecEnv`; `info["is_success"]` makes
    Stable-Baselines3 log a success rate. Wrap it in its `VecMonitor` for returns and lengths.

    Args:
        envs: Made with `autoreset_mode="SameStep"`, which is when Stable-Baselines3 resets; closed with what is returned.
            Observations are a dict of arrays on the host.

    Raises:
        ValueError: It has another autoreset mode, or observations of another kind.
        MissingDependencyError: Stable-Baselines3 is not installed.
    """
    try:
        from vla_envs.vector.sb3_env import SB3Env
    except ImportError as error:
        raise MissingDependencyError(
            f"Stable-Baselines3 cannot be imported ({error}): pip install stable-baselines3"
        ) from error
    return SB3Env(envs)
