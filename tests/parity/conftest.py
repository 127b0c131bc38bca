"""A few tasks, compiled here, beside LIBERO's own envs of them."""

from collections.abc import Iterator
from typing import Any

import pytest

from benchmarks.parity.images import open_engine
from benchmarks.parity.stock import make_stock
from vla_envs.libero.cache import load_scene
from vla_envs.libero.engine_scene import LiberoEngineScene
from vla_envs.libero.scene import Scene

TASKS = [("libero_goal", 3), ("libero_10", 2)]
"""A cabinet with drawers; a stove with a knob, and a pot."""


@pytest.fixture(scope="session", params=TASKS, ids=lambda task: f"{task[0]}-{task[1]}")
def scene_and_stock(request: pytest.FixtureRequest) -> Iterator[tuple[Scene, Any]]:
    """A compiled task, and LIBERO's `OffScreenRenderEnv` of it."""
    scene = load_scene(*request.param)
    stock = make_stock(scene)
    yield scene, stock
    stock.close()


@pytest.fixture(scope="module")
def drawn_scene(scene_and_stock: tuple[Scene, Any]) -> Iterator[LiberoEngineScene]:
    """The scene, kept on the GL threads from one test to the next."""
    with open_engine(128):
        yield LiberoEngineScene(scene_and_stock[0])
