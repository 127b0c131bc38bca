"""CONTRIBUTING.md, the workflow and the commit hooks name files, tests, commands and classes that there are."""

import importlib.util
import re
import tomllib
from pathlib import Path

import pytest
import yaml

import vla_train

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "CONTRIBUTING.md").read_text()
WORKFLOW = (ROOT / ".github" / "workflows" / "ci.yml").read_text()
PATHS = sorted(set(re.findall(r"[\w./-]+\.(?:py|md|cff|yml)\b", PAGE)))
TARGETS = sorted(set(re.findall(r"\bmake ([a-z-]+)\b", WORKFLOW) + re.findall(r"(?:^|`|, then |: )make ([a-z-]+)", PAGE, re.M)))
DEFINED = sorted(set(re.findall(r"`([A-Z]\w+)`\s(?:in |\()`([\w/]+\.py)`", PAGE)))


@pytest.mark.parametrize("path", PATHS)
def test_a_file_that_is_named_exists(path: str):
    assert (ROOT / path).is_file()


@pytest.mark.parametrize("target", TARGETS)
def test_a_make_target_that_is_named_exists(target: str):
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE)


@pytest.mark.parametrize(("name", "file"), DEFINED)
def test_a_class_that_is_named_is_defined_in_the_file_beside_it(name: str, file: str):
    assert re.search(rf"^(class |def )?{name}\b", (ROOT / file).read_text(), re.MULTILINE)


def test_the_page_names_enough_to_be_worth_these_tests():
    assert {"setup", "test", "check", "wheels"} <= set(TARGETS)
    protocols = {"Engine", "EnvWorker", "PolicyFactory", "Estimator", "Loss", "Tracker"}
    assert protocols <= {name for name, _ in DEFINED}
    assert len(PATHS) > 25
    assert {"TrainablePolicy", "SupervisedPolicy", "PolicyFactory"} <= set(vla_train.__all__)


def test_the_workflow_tries_each_python_that_the_packages_promise():
    tried = yaml.safe_load(WORKFLOW)["jobs"]["test"]["strategy"]["matrix"]["python"]
    for package in ("vla_envs", "vla_train"):
        project = tomllib.loads((ROOT / package / "pyproject.toml").read_text())["project"]
        versions = [line.rpartition(" ")[2] for line in project["classifiers"] if re.search(r":: \d\.\d+$", line)]
        assert versions == tried
        assert project["requires-python"] == f">={tried[0]}"


def test_commit_hooks_run_the_projects_own_tools_and_no_other_version_of_them():
    (local,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    assert local["repo"] == "local"
    makefile = (ROOT / "Makefile").read_text()
    for hook in local["hooks"]:
        assert hook["language"] == "system"
        tool = hook["entry"].removeprefix(".venv/bin/")
        assert f"$(BIN)/{tool}" in makefile
        assert importlib.util.find_spec(tool.split()[0])
