"""Stock LIBERO's own vector envs, one per kind for all benchmarks: building them takes longer than measuring."""

from collections.abc import Iterator
from typing import Any

import pytest
from stock import make_stock_envs


@pytest.fixture(scope="session")
def stock_envs() -> Iterator[Any]:
    """Two envs that draw two cameras after every control step, as RLinf, SimpleVLA-RL, verl and LeRobot use them."""
    envs = make_stock_envs(drawing=True)
    yield envs
    envs.close()


@pytest.fixture(scope="session")
def stock_envs_without_cameras() -> Iterator[Any]:
    """Two envs that draw nothing."""
    envs = make_stock_envs(drawing=False)
    yield envs
    envs.close()
