"""On NVIDIA's EGL: whatever names this process's GPU, that one draws, and the log says which it is."""

import os
import re
import subprocess
import sys

import pytest

pytestmark = pytest.mark.gpu

OPEN = """
import logging
logging.basicConfig(level=logging.INFO, format="%(message)s")
from vla_envs.vector.gl_context import open_device
device = open_device("auto")
device.make_context().free()
assert device.is_gpu, device.renderer
"""
CHOICES = ("CUDA_VISIBLE_DEVICES", "LOCAL_RANK", "RANK", "MUJOCO_EGL_DEVICE_ID")


def gpu_that_draws(**environment: str) -> tuple[int, str]:
    """Index in EGL's list and UUID ("" if EGL does not tell) of what a process with these variables draws on."""
    inherited = {name: value for name, value in os.environ.items() if name not in CHOICES}
    result = subprocess.run(
        [sys.executable, "-c", OPEN], env=inherited | environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert result.returncode == 0, result.stderr
    found = re.search(r"rendering on .*\(EGL device (\d+)(?:, CUDA device \d+)?(?:, (GPU-[0-9a-f-]+))?\)", result.stderr)
    assert found, result.stderr
    return int(found[1]), found[2] or ""


def gpu_uuids() -> list[str]:
    """UUIDs of this machine's GPUs, as nvidia-smi orders them."""
    listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=True).stdout
    return re.findall(r"UUID: (GPU-[0-9a-f-]+)", listed)


@pytest.mark.parametrize("visible", ["0", "", "-1", "0,1", "17", "GPU-00000000", "MIG-00000000-0000-4000-8000-000000000000"])
def test_a_gpu_draws_whatever_cuda_may_see(visible: str):
    gpu_that_draws(CUDA_VISIBLE_DEVICES=visible)


def test_the_gpu_that_cuda_sees_draws_by_number_and_by_uuid():
    for number, uuid in enumerate(gpu_uuids()):
        by_number = gpu_that_draws(CUDA_VISIBLE_DEVICES=str(number))
        assert gpu_that_draws(CUDA_VISIBLE_DEVICES=uuid) == by_number
        assert by_number[1] in (uuid, "")


def test_each_rank_of_a_host_draws_on_its_own_gpu():
    uuids = gpu_uuids()
    if len(uuids) < 2:
        pytest.skip("needs two GPUs")
    ranks = [gpu_that_draws(LOCAL_RANK=str(rank), RANK=str(rank)) for rank in range(len(uuids))]
    assert len(set(ranks)) == len(uuids)
    assert [uuid for _, uuid in ranks] in (uuids, [""] * len(uuids))
    assert gpu_that_draws(LOCAL_RANK="1", CUDA_VISIBLE_DEVICES="1,0") == ranks[0]
