"""Build hook: puts the package's files, and the `.pth` line that registers its ids, where they belong.

The distribution's folder is the package itself, so every file is mapped from `./x` to `vla_envs/x`; the `.pth` file must lie
beside the package instead, at the root of site-packages, in a wheel and in an editable install alike.
"""

from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

_REGISTRATION = "vla_envs_gymnasium_plugin.pth"
_TYPED = "py.typed"
"""Says that the package has types (PEP 561)."""
_NOT_IN_PACKAGE = {"hatch_build.py", "__pycache__"}


class PackageHook(BuildHookInterface):
    """Chooses the files of a wheel."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        root = Path(self.root)
        registration = {str(root / _REGISTRATION): _REGISTRATION}
        if version == "editable":
            build_data["force_include_editable"] = registration
            return
        modules = {path.name for path in root.iterdir() if path.suffix == ".py" or (path / "__init__.py").is_file()}
        package = {str(root / name): f"vla_envs/{name}" for name in {*modules, _TYPED} - _NOT_IN_PACKAGE}
        build_data["force_include"] |= registration | package
