"""Where fixtures stand, against LIBERO after its usual calls: the env is made, `seed(0)`, `reset()`, `set_init_state`."""

import copy
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from benchmarks.parity.fixtures import fixture_difference
from benchmarks.parity.images import open_engine, pictures
from benchmarks.parity.stock import make_stock, turned
from vla_envs.libero.cache import load_scene
from vla_envs.libero.compile import compile_scene
from vla_envs.libero.engine_scene import LiberoEngineScene
from vla_envs.libero.scene import Scene

MICROWAVE_CLOSED = ("libero_90", 37)
DRAWER_OPEN = ("libero_spatial", 4)
NOTHING_OPEN_OR_CLOSED = ("libero_goal", 3)
"""LIBERO's samplers of doors and drawers draw from the random numbers that then place the fixtures."""


@pytest.fixture(
    scope="module", params=[MICROWAVE_CLOSED, DRAWER_OPEN, NOTHING_OPEN_OR_CLOSED], ids=lambda task: f"{task[0]}-{task[1]}"
)
def both(request: pytest.FixtureRequest) -> Iterator[tuple[Scene, Any]]:
    """A compiled task, and LIBERO's env of it after `seed(0)` and `reset()`."""
    scene = load_scene(*request.param)
    stock = make_stock(scene)
    yield scene, stock
    stock.close()


def test_fixtures_stand_where_liberos_usual_calls_put_them_and_so_its_pictures_are_the_same(both: tuple[Scene, Any]):
    scene, stock = both
    assert fixture_difference(scene, stock) == 0.0
    theirs = turned(stock.set_init_state(scene.init_states[0]))
    with open_engine(128) as engine:
        ours = pictures(engine, LiberoEngineScene(scene), scene.init_states[0])
    for camera, picture in ours.items():
        np.testing.assert_array_equal(picture, theirs[camera])


def test_the_comparison_notices_a_fixture_moved_by_a_micrometre(both: tuple[Scene, Any]):
    scene, stock = both
    moved = replace(scene, model=copy.copy(scene.model))
    moved.model.body_pos[1] += [0.0, 1e-6, 0.0]
    assert fixture_difference(moved, stock) == pytest.approx(1e-6)


def test_another_seed_puts_fixtures_where_libero_puts_them_after_that_seed():
    usual, scene = load_scene(*MICROWAVE_CLOSED), compile_scene(*MICROWAVE_CLOSED, detail="fast", fixture_seed=3)
    stock = make_stock(scene)
    assert fixture_difference(scene, stock) == 0.0
    assert fixture_difference(usual, stock) > 0.001
    stock.close()
