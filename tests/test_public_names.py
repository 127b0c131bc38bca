"""What the packages offer to others: each public name is there, has its type, and costs nothing until it is asked for."""

import ast
import importlib
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import yaml

import vla_envs
import vla_train

ROOT = Path(__file__).parents[1]
PACKAGES = (vla_envs, vla_train)
EACH_NAME = [pytest.param(package, name, id=f"{package.__name__}.{name}") for package in PACKAGES for name in package.__all__]


def names_for_type_checkers(package: ModuleType) -> Iterator[tuple[str, str]]:
    """(name, module) of what a package imports for type checkers only, and gives on under the same name."""
    (block,) = [node for node in ast.parse(Path(str(package.__file__)).read_text()).body if isinstance(node, ast.If)][:1]
    for statement in block.body:
        assert isinstance(statement, ast.ImportFrom)
        for alias in statement.names:
            assert alias.asname == alias.name
            yield alias.name, str(statement.module)


def loaded_by(program: str) -> set[str]:
    """Modules that a process has loaded after a program."""
    command = [sys.executable, "-c", f"{program}\nimport sys; print(*sys.modules)"]
    return set(subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout.split())


@pytest.mark.parametrize("package", PACKAGES, ids=lambda package: package.__name__)
def test_type_checkers_and_python_find_each_public_name_in_the_same_module(package: ModuleType):
    assert dict(names_for_type_checkers(package)) == package._MODULES
    assert sorted(package.__all__) == sorted(package._MODULES)


@pytest.mark.parametrize(("package", "name"), EACH_NAME)
def test_a_public_name_is_that_of_its_module(package: ModuleType, name: str):
    assert getattr(package, name) is getattr(importlib.import_module(package._MODULES[name]), name)
    assert name in dir(package)


@pytest.mark.parametrize("package", PACKAGES, ids=lambda package: package.__name__)
def test_a_name_that_is_not_there_is_an_attribute_error(package: ModuleType):
    with pytest.raises(AttributeError, match=rf"module '{package.__name__}' has no attribute 'Unheard'"):
        _ = package.Unheard


def test_importing_a_package_loads_nothing_else_of_it():
    before = loaded_by("")
    assert {name for name in loaded_by("import vla_envs") - before if name.startswith("vla_")} <= {
        "vla_envs",
        "vla_envs._gymnasium_plugin",
    }
    assert loaded_by("import vla_train") - before == {"vla_train"}


def test_errors_and_what_a_policy_is_written_with_load_no_simulator_and_no_torch():
    assert loaded_by("from vla_envs import NotResetError") & {"mujoco", "numba", "gymnasium", "numpy", "torch"} == set()
    names = "EnvDescription, Observation, PolicyConfig, PolicyFactory, PolicyOutput, TrainablePolicy, TrainConfig"
    assert loaded_by(f"from vla_train import {names}") & {"torch", "transformers", "gymnasium", "mujoco"} == set()


def test_all_versions_are_the_same():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    newest = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert newest is not None
    assert {vla_envs.__version__, vla_train.__version__, str(citation["version"])} == {newest[1]}
