"""Registers the `vla_envs` ids as soon as `gymnasium` is imported, in any process of the environment.

Gymnasium 1.0 dropped its plugin entry point. So the distribution installs a one-line `.pth` file that imports this module
whenever Python starts, in other people's programs too. They must start as if this package were not there: the module imports
nothing but `sys`, does nothing in a process that never imports Gymnasium, and turns its failures into warnings.
"""

from __future__ import annotations

import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from importlib.abc import Loader
    from importlib.machinery import ModuleSpec
    from types import ModuleType

_HOOKED_MODULE = "gymnasium.envs"  # holds the registry; imported last by `import gymnasium`


class _RegisterAfterLoad:
    """Loads `gymnasium.envs` as its own loader would, then adds our ids to the registry."""

    def __init__(self, loader: Loader) -> None:
        self._loader = loader

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        module.__loader__ = self._loader
        if module.__spec__ is not None:
            module.__spec__.loader = self._loader
        self._loader.exec_module(module)
        _register()


class _GymnasiumFinder:
    """Finds `gymnasium.envs` through the finders behind this one, and nothing else."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != _HOOKED_MODULE:
            return None
        for finder in sys.meta_path[sys.meta_path.index(self) + 1 :]:
            spec = finder.find_spec(fullname, path, target)
            if spec is not None:
                if spec.loader is not None:
                    spec.loader = _RegisterAfterLoad(spec.loader)  # type: ignore[assignment] # a loader by what it does
                return spec
        return None


def install() -> None:
    """Register the ids now where Gymnasium is loaded already, and whenever it is loaded. Calling it again changes nothing."""
    if not any(isinstance(finder, _GymnasiumFinder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _GymnasiumFinder())
    if _HOOKED_MODULE in sys.modules:
        _register()


def _register() -> None:
    try:
        from vla_envs.registration import register_envs

        register_envs()
    except Exception as error:
        import warnings

        warnings.warn(f"vla_envs could not register its ids with Gymnasium: {error!r}", RuntimeWarning, stacklevel=2)
