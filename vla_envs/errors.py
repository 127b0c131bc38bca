"""The error vocabulary of `vla_envs`: every error a user can meet that is more than a plain `ValueError`."""


class MissingDependencyError(ImportError):
    """An optional simulator or library is not installed; the message names what to install."""


class SceneFormatError(ValueError):
    """A compiled scene file is damaged, incomplete or of another format; the message names the file and the reason."""


class RenderingUnavailableError(RuntimeError):
    """No OpenGL context could be made; the message names the system package to install."""


class NotResetError(RuntimeError):
    """A call that needs episodes came before `reset` or after `close`, or a single env's `step` after its episode's end."""


class UnsupportedTaskError(ValueError):
    """A task that the scripted expert cannot do; the message names the task and the reason."""
