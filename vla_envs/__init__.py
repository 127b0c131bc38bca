"""Robot-manipulation benchmarks as Gymnasium vector environments.

Importing this package registers its ids with Gymnasium (`Libero-v0`, `Isaac-v0` and one per LIBERO suite). It starts no
simulator and loads nothing heavy: a public name (`__all__`) is imported from its module when it is first asked for. Where the
package is installed, the import is not even needed.
"""

from vla_envs import _gymnasium_plugin

TYPE_CHECKING = False  # instead of importing `typing`: this file runs whenever Python starts
if TYPE_CHECKING:
    from vla_envs.errors import MissingDependencyError as MissingDependencyError
    from vla_envs.errors import NotResetError as NotResetError
    from vla_envs.errors import RenderingUnavailableError as RenderingUnavailableError
    from vla_envs.errors import SceneFormatError as SceneFormatError
    from vla_envs.errors import UnsupportedTaskError as UnsupportedTaskError
    from vla_envs.isaac.env import IsaacEnv as IsaacEnv
    from vla_envs.libero.env import LiberoEnv as LiberoEnv
    from vla_envs.libero.expert.expert import Expert as Expert
    from vla_envs.libero.privileged import PrivilegedView as PrivilegedView
    from vla_envs.libero.suites import SuiteTask as SuiteTask
    from vla_envs.libero.suites import suite_tasks as suite_tasks
    from vla_envs.vector.cameras import Camera as Camera
    from vla_envs.vector.randomization import Randomization as Randomization
    from vla_envs.vector.sb3 import as_sb3_env as as_sb3_env

__version__ = "0.1.0"

_MODULES = {
    "Camera": "vla_envs.vector.cameras",
    "Expert": "vla_envs.libero.expert.expert",
    "IsaacEnv": "vla_envs.isaac.env",
    "LiberoEnv": "vla_envs.libero.env",
    "MissingDependencyError": "vla_envs.errors",
    "NotResetError": "vla_envs.errors",
    "PrivilegedView": "vla_envs.libero.privileged",
    "Randomization": "vla_envs.vector.randomization",
    "RenderingUnavailableError": "vla_envs.errors",
    "SceneFormatError": "vla_envs.errors",
    "SuiteTask": "vla_envs.libero.suites",
    "UnsupportedTaskError": "vla_envs.errors",
    "as_sb3_env": "vla_envs.vector.sb3",
    "suite_tasks": "vla_envs.libero.suites",
}
"""Where each public name is defined; what type checkers see stands above, and a test holds the two equal."""

__all__ = list(_MODULES)

if not TYPE_CHECKING:  # a type checker that saw this function would take any name for a public one

    def __getattr__(name):
        if name not in _MODULES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from importlib import import_module

        return getattr(import_module(_MODULES[name]), name)

    def __dir__():
        return sorted({*globals(), *__all__})


_gymnasium_plugin.install()
