"""Devices of the tests on Warp: its CPU device, and a GPU where tests marked `gpu` run."""

from importlib.util import find_spec
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from vla_envs.warp.device import WarpDevice

collect_ignore_glob = [] if find_spec("mujoco_warp") else ["test_*.py"]


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> "WarpDevice":
    """Each device in turn."""
    from vla_envs.warp.device import WarpDevice

    return WarpDevice(request.param)
