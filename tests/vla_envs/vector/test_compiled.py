"""Native code is kept on disk where that is possible, and works where it is not."""

import importlib
import logging
from pathlib import Path

import pytest

from vla_envs.vector import compiled as compiled_module
from vla_envs.vector.compiled import _warn_once, compiled
from vla_envs.vector.slot import copy_poses


def test_a_function_that_numba_cannot_keep_is_compiled_all_the_same_and_the_remedy_is_named(caplog: pytest.LogCaptureFixture):
    _warn_once.cache_clear()
    names: dict = {}
    exec("def double(number):\n    return 2 * number", names)  # has no file beside which, or for which, a cache could lie
    with caplog.at_level(logging.WARNING):
        double = compiled(names["double"])
    assert double(21) == 42
    assert "NUMBA_CACHE_DIR" in caplog.text


def test_any_other_function_is_kept():
    assert copy_poses.stats.cache_path


def test_what_was_kept_is_used_until_the_source_of_any_compiled_function_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "fresh.py").write_text("def double(number):\n    return 2 * number\n")
    monkeypatch.syspath_prepend(tmp_path)
    hits = []
    for sources in ("one", "one", "another", "another"):
        monkeypatch.setattr(compiled_module, "_sources", lambda sources=sources: sources)
        double = compiled(importlib.import_module("fresh").double)
        assert double(21) == 42
        hits.append(sum(double.stats.cache_hits.values()))
    assert hits == [0, 1, 0, 1]


def test_the_sources_are_those_with_compiled_functions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(compiled_module, "_PACKAGE", tmp_path)
    stamps = []
    for name, text in (("a.py", "@compiled"), ("b.py", "plain"), ("a.py", "@compiled, changed")):
        (tmp_path / name).write_text(text)
        compiled_module._sources.cache_clear()
        stamps.append(compiled_module._sources())
    compiled_module._sources.cache_clear()
    assert stamps[0] == stamps[1] != stamps[2]
