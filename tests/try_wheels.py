"""Install the two wheels of a folder into a bare environment, and use them there as somebody would who has no checkout.

    python tests/try_wheels.py dist
    python tests/try_wheels.py dist --dependencies .venv     # take these from an environment instead of installing gigabytes

`make wheels` builds the wheels and runs this. It needs only Python with pip. No extra is installed, so what is tried here must
do without LIBERO, Ray and the rest. The environment is made in a temporary folder, and removed.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

IDS_WITHOUT_IMPORT = """
import sys, gymnasium
loaded = {name for name in sys.modules if name.startswith("vla_envs.")}
assert loaded == {"vla_envs._gymnasium_plugin", "vla_envs.registration"}, loaded
assert {"Libero-v0", "Libero-10-v0", "Isaac-v0"} <= gymnasium.registry.keys()
"""
ENVS_ARE_MADE = """
import gymnasium, vla_envs
for make in (gymnasium.make, gymnasium.make_vec):
    try:
        make("Libero-v0", scene_dir="nowhere")
    except vla_envs.SceneFormatError as error:
        assert "nowhere is not a folder of exported scenes" in str(error), error
    else:
        raise AssertionError("there are no scenes")
"""
PUBLIC_NAMES = """
import importlib.metadata, pathlib, sys, vla_envs, vla_train
for package in (vla_envs, vla_train):
    folder = pathlib.Path(package.__file__).parent
    assert folder.is_relative_to(sys.prefix), folder
    assert (folder / "py.typed").is_file()
    assert package.__version__ == importlib.metadata.version(package.__name__)
    for name in package.__all__:
        getattr(package, name)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("wheels", type=Path, help="folder that holds one wheel of each package")
    parser.add_argument("--dependencies", type=Path, help="an environment of the same Python to take dependencies from")
    arguments = parser.parse_args()
    wheels = [only_wheel(arguments.wheels, package) for package in ("vla_envs", "vla_train")]

    with tempfile.TemporaryDirectory() as folder:
        environment = Path(folder) / "bare"
        venv.create(environment, with_pip=True)
        python = str(environment / "bin" / "python")
        if arguments.dependencies is not None:
            borrow(environment, arguments.dependencies)
        install = ["install", "-q", *(["--no-deps"] if arguments.dependencies else []), *map(str, wheels)]
        run(python, "-m", "pip", *install, folder=Path.cwd())
        for program in (IDS_WITHOUT_IMPORT, ENVS_ARE_MADE, PUBLIC_NAMES):
            run(python, "-c", program, folder=Path(folder))
        assert "commands:" in run(python, "-m", "vla_train", "--help", folder=Path(folder))
        assert "commands:" in run(str(environment / "bin" / "vla-train"), "--help", folder=Path(folder))
        assert "--env.id" in run(python, "-m", "vla_train", "train", "--help", folder=Path(folder))
    print(f"both wheels work in a bare environment: {', '.join(wheel.name for wheel in wheels)}")


def only_wheel(folder: Path, package: str) -> Path:
    files = list(folder.glob(f"{package}-*.whl"))
    if len(files) != 1:
        sys.exit(f"error: expected one wheel of {package}, found {len(files)}: build them with make wheels")
    return files[0]


def borrow(environment: Path, other: Path) -> None:
    """Let an environment find another one's packages behind its own; what is installed there as editable stays unknown."""
    (mine,), (theirs,) = (list(folder.resolve().glob("lib/python*/site-packages")) for folder in (environment, other))
    (mine / "borrowed.pth").write_text(f"{theirs}\n")


def run(*command: str, folder: Path) -> str:
    """Standard output; an error ends all. Nothing of this process's settings reaches the command but where things are."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "MUJOCO", "VIRTUAL_ENV"))}
    result = subprocess.run(command, cwd=folder, env=kept, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if result.returncode:
        sys.exit(f"{result.stdout}error: {' '.join(command)} failed")
    return result.stdout


if __name__ == "__main__":
    main()
