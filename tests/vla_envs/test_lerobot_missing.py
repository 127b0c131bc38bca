"""What somebody without LeRobot reads. With it: tests/on_lerobot, which `make test-lerobot` runs."""

import sys
from importlib import import_module

import pytest

from vla_envs import MissingDependencyError


def test_without_lerobot_the_error_names_what_to_install(monkeypatch: pytest.MonkeyPatch):
    for name in [name for name in sys.modules if name.startswith("vla_envs.lerobot")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "lerobot", None)
    with pytest.raises(MissingDependencyError, match=r"Python 3\.12 .* pip install 'vla-envs\[lerobot\]'"):
        import_module("vla_envs.lerobot")
