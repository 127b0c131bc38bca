"""Native code is kept on disk where that is possible, and works where it is not."""

import logging

import pytest

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
