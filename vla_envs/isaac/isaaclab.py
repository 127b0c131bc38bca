"""The Isaac Lab backend's door: the only module that knows Isaac Lab, which it looks for and never imports unasked."""

from importlib.util import find_spec

from vla_envs.errors import MissingDependencyError


def require_isaaclab() -> None:
    """Say why LIBERO's tasks cannot run on Isaac Lab here.

    Raises:
        MissingDependencyError: Isaac Lab is not installed; the message says what that takes, and that it would not be enough.
        ValueError: It is, and this version does not bring the tasks to it.
    """
    if find_spec("isaaclab") is None:
        raise MissingDependencyError(
            "backend='isaaclab' needs Isaac Lab, which is not installed (pip install 'vla-envs[isaac]', and Isaac Sim: "
            "https://isaac-sim.github.io/IsaacLab). But this version cannot run on it even then: the backend that works is "
            "backend='mujoco', on any CPU"
        )
    raise ValueError("backend='isaaclab': Isaac Lab is installed, but this version cannot run on it; use backend='mujoco'")
