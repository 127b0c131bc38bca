"""The Isaac Lab backend's door: the only module that looks for Isaac Lab, and never imports it unasked."""

from importlib.util import find_spec

from vla_envs.errors import MissingDependencyError


def require_isaaclab() -> None:
    """Say what is missing to run on Isaac Lab.

    Raises:
        MissingDependencyError: Always in this version: without Isaac Lab, how to install it; with it, that the LIBERO tasks
            have not been brought to it yet.
    """
    if find_spec("isaaclab") is None:
        raise MissingDependencyError(
            "backend='isaaclab' needs Isaac Lab and a GPU with RT cores: pip install 'vla-envs[isaac]' and Isaac Sim "
            "(https://isaac-sim.github.io/IsaacLab); backend='mujoco' runs anywhere"
        )
    raise MissingDependencyError("this version of vla-envs does not drive Isaac Lab yet: use backend='mujoco'")
