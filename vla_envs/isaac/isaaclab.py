"""The Isaac Lab backend, which does not exist yet: says so, and what it would need. The only module that knows Isaac Lab."""

from importlib.util import find_spec

from vla_envs.errors import MissingDependencyError


def require_isaaclab() -> None:
    """Raise the reason why LIBERO's tasks cannot run on Isaac Lab here.

    Raises:
        MissingDependencyError: Isaac Lab is not installed; installing it would not be enough, and the message says so.
        ValueError: Isaac Lab is installed, but this version cannot run on it.
    """
    if find_spec("isaaclab") is None:
        raise MissingDependencyError(
            "backend='isaaclab' needs Isaac Lab, which is not installed, and this version cannot run on it even where it is: "
            "the backend that works is backend='mujoco', on any CPU"
        )
    raise ValueError("backend='isaaclab': Isaac Lab is installed, but this version cannot run on it; use backend='mujoco'")
