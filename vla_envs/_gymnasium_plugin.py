"""Registers the `vla_envs` ids as soon as `gymnasium` is imported, in any process of the environment.

Gymnasium 1.0 dropped its plugin entry point, so the distribution installs a one-line `.pth` file that imports this module
when Python starts. It costs one import-path entry: neither Gymnasium nor a simulator is loaded here, and nothing happens
in a process that never imports Gymnasium.
"""

import importlib.abc
import importlib.machinery
import importlib.util
import sys
from types import ModuleType

_HOOKED_MODULE = "gymnasium.envs"  # holds the registry; imported last by `import gymnasium`


class _RegisterAfterLoad(importlib.abc.Loader):
    """Loads `gymnasium.envs` as its own loader would, then adds our ids to the registry."""

    def __init__(self, loader: importlib.abc.Loader) -> None:
        self._loader = loader

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        module.__loader__ = self._loader
        if module.__spec__ is not None:
            module.__spec__.loader = self._loader
        self._loader.exec_module(module)
        from vla_envs.registration import register_envs

        register_envs()


class _GymnasiumFinder(importlib.abc.MetaPathFinder):
    """Finds `gymnasium.envs` once, through the finders behind this one, and steps aside."""

    def find_spec(self, fullname: str, path: object = None, target: object = None) -> importlib.machinery.ModuleSpec | None:
        if fullname != _HOOKED_MODULE:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        if spec is not None and spec.loader is not None:
            spec.loader = _RegisterAfterLoad(spec.loader)
        return spec


def install() -> None:
    """Register the ids now where Gymnasium is loaded already, else as soon as it is. Calling it again changes nothing."""
    if _HOOKED_MODULE in sys.modules:
        from vla_envs.registration import register_envs

        register_envs()
    elif not any(isinstance(finder, _GymnasiumFinder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _GymnasiumFinder())
