"""Build hook: puts the package's folders, and the `.pth` line that registers its ids, where they belong.

The distribution's folder is the package itself, so every file is mapped from `./x` to `vla_envs/x`; the `.pth` file must lie
beside the package instead, at the root of site-packages, in a wheel and in an editable install alike.
"""

from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

_REGISTRATION = "vla_envs_gymnasium_plugin.pth"
_NOT_INSTALLED = {"hatch_build.py", "pyproject.toml", "__pycache__", _REGISTRATION}


class PackageHook(BuildHookInterface):
    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        root = Path(self.root)
        registration = {str(root / _REGISTRATION): _REGISTRATION}
        if version == "editable":
            build_data["force_include_editable"] = registration
            return
        members = [path for path in root.iterdir() if path.name not in _NOT_INSTALLED and not path.name.startswith(".")]
        build_data["force_include"] |= registration | {str(path): f"vla_envs/{path.name}" for path in members}
