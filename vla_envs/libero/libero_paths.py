"""Whether LIBERO's folders are where its configuration file says; such a file may be older than the installation."""

import os
from pathlib import Path

from vla_envs.errors import MissingDependencyError

_FOLDERS = ("bddl_files", "init_states", "assets")


def check_paths() -> None:
    """Say which of LIBERO's folders is not there.

    Raises:
        MissingDependencyError: One is not; names the configuration file that says where it should be.
    """
    import libero.libero

    folder = os.environ.get("LIBERO_CONFIG_PATH") or libero.libero.libero_config_path
    file = Path(folder).expanduser() / "config.yaml"
    for name in _FOLDERS:
        try:
            path = Path(libero.libero.get_libero_path(name))
        except Exception as error:  # whatever reading the file raises
            raise MissingDependencyError(
                f"LIBERO's configuration file {file} cannot be read ({error!r}): delete it, and LIBERO uses its own folders"
            ) from error
        if not path.is_dir():
            blamed = (
                f"{file} says so: delete that file, and LIBERO uses its own folders" if file.is_file() else "Reinstall LIBERO"
            )
            raise MissingDependencyError(f"LIBERO looks for its {name} in {path}, where there is no folder. {blamed}")
