"""What tests of envs that draw share."""

from collections.abc import Iterator

import pytest

from vla_envs.vector.rendering import RenderPool


@pytest.fixture(scope="module")
def opengl() -> Iterator[None]:
    """Keeps contexts between tests."""
    pool = RenderPool.acquire("auto")
    yield
    pool.release()
