"""What draws in software leaves the process as it was for libraries that are loaded later."""

import subprocess
import sys
from importlib.util import find_spec

import pytest

DRAW = """
import ctypes
from vla_envs.vector.gl_context import open_device
device = open_device("cpu")
device.make_context().free()
"""
FIRST_SCRIPT = """
import gymnasium as gym
env = gym.make("Libero-v0", task_id=0, detail="fast", image_size=32, device="cpu")
env.reset(seed=0)
import torch
torch.optim.Adam([torch.nn.Parameter(torch.zeros(1))]).step()
env.step(env.action_space.sample())
env.close()
print("trained")
"""


def run(program: str) -> str:
    """Standard output of a process of its own; a crash there fails here."""
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=300, check=False)
    assert result.returncode == 0, f"rc {result.returncode}: {result.stderr}"
    return result.stdout


def test_mesas_llvm_does_not_stand_in_for_that_of_libraries_loaded_later():
    output = run(f"{DRAW}\nprint(hasattr(ctypes.CDLL(None), 'LLVMContextCreate'), device.renderer)")
    assert output.startswith("False ")


def test_the_library_that_opens_mesas_driver_is_otherwise_as_it_was():
    program = f"""
import re
from mujoco.egl import egl_ext
egl_ext.eglQueryDevicesEXT()
def pages():
    lines = open("/proc/self/maps").read().splitlines()
    return [line for line in lines if "libEGL_mesa" in line]
before = pages()
from vla_envs.vector.mesa_driver import keep_driver_local
keep_driver_local()
assert pages() == before, (before, pages())
{DRAW}
print(device.renderer)
"""
    assert run(program).strip()


def test_a_first_script_that_plays_and_then_trains_runs_to_its_end():
    pytest.importorskip("torch")
    assert run(FIRST_SCRIPT) == "trained\n"


@pytest.mark.skipif(find_spec("triton") is None, reason="needs Triton, which has an LLVM of its own")
def test_triton_can_be_imported_after_something_was_drawn_in_software():
    assert run(f"{DRAW}\nimport triton._C.libtriton\nprint('imported')") == "imported\n"
