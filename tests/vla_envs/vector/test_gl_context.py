"""What draws is chosen once and reported; where nothing can draw, the error says what to install."""

import logging
import os
import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest
from fake_egl import SOFTWARE, FakeDevice, FakeEGL

from vla_envs.vector import gl_context
from vla_envs.vector.gl_context import Device, GLDevice, _choose_device, _log_once, check_device, open_device

NO_DRIVER = {"__EGL_VENDOR_LIBRARY_FILENAMES": "/nonexistent.json", "MUJOCO_GL": "egl"}
PACKAGES = "apt-get install libegl1 libgl1 libgl1-mesa-dri"


@pytest.fixture(autouse=True)
def choose_anew() -> Iterator[None]:
    _choose_device.cache_clear()
    _log_once.cache_clear()
    yield
    _choose_device.cache_clear()
    _log_once.cache_clear()


def run_python(code: str, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """Run `code` in a process of its own, with these variables set beside those of this process."""
    return subprocess.run(
        [sys.executable, "-c", code], env=os.environ | environment, capture_output=True, text=True, timeout=120, check=False
    )


def test_the_choice_is_logged_with_the_name_that_opengl_gives_the_device(caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.INFO, "vla_envs")
    device = open_device("auto")
    assert f"rendering on {device.renderer}" in caplog.text
    assert open_device("auto") is device


def test_the_choice_is_logged_once_per_process(caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.INFO, "vla_envs")
    for _ in range(2):
        open_device("auto")
        open_device("cuda")
    assert caplog.text.count("rendering on") == 1


def test_among_several_ranks_the_log_says_whose_choice_it_is(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch):
    caplog.set_level(logging.INFO, "vla_envs")
    monkeypatch.setenv("RANK", "9")
    monkeypatch.setenv("LOCAL_RANK", "1")
    device = open_device("auto")
    assert f"rank 9 (local rank 1) is rendering on {device.renderer}" in caplog.text


def test_each_rank_opens_its_own_gpu_and_the_log_names_it(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch):
    """Two GPUs that EGL lists against CUDA's order; what is opened is a made-up device."""
    egl = FakeEGL([FakeDevice(cuda_ordinal=1), FakeDevice(cuda_ordinal=0), FakeDevice(extensions=SOFTWARE)])
    egl.EGL_PLATFORM_DEVICE_EXT = 0x313F
    egl.eglGetPlatformDisplayEXT = lambda platform, handle, attributes: handle.value
    monkeypatch.setattr(gl_context, "_egl", lambda: egl)

    def open_fake(display: int, *, is_gpu: bool) -> GLDevice:
        return GLDevice(renderer=f"GPU {display}", is_gpu=is_gpu, address=display, display=display)

    monkeypatch.setattr(gl_context, "_open", open_fake)
    caplog.set_level(logging.INFO, "vla_envs")
    opened = []
    for rank in "01":
        monkeypatch.setenv("LOCAL_RANK", rank)
        monkeypatch.setenv("RANK", rank)
        _choose_device.cache_clear()
        opened.append(open_device("cuda").address)
    assert opened == [2, 1]
    assert "rank 0 (local rank 0) is rendering on GPU 2 (EGL device 1, CUDA device 0)" in caplog.text
    assert "rank 1 (local rank 1) is rendering on GPU 1 (EGL device 0, CUDA device 1)" in caplog.text


@pytest.mark.parametrize("visible", ["0", "1", "0,1", "", "-1", "GPU-11111111-0000-4000-8000-111111111111", "MIG-1/2/3"])
def test_no_choice_of_cuda_devices_keeps_anything_from_being_drawn(visible: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    open_device("auto").make_context().free()


@pytest.mark.parametrize("call", [check_device, open_device])
def test_a_wrong_number_of_an_egl_device_is_refused(call: Callable[[Device], object], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MUJOCO_EGL_DEVICE_ID", "99")
    with pytest.raises(ValueError, match=r"MUJOCO_EGL_DEVICE_ID must be the place of a device in EGL's list of .* got '99'"):
        call("auto")


def test_the_cpu_draws_in_software():
    device = open_device("cpu")
    assert not device.is_gpu
    assert "llvmpipe" in device.renderer or "softpipe" in device.renderer or "swrast" in device.renderer


def test_cuda_draws_on_a_gpu_or_warns_and_draws_in_software(caplog: pytest.LogCaptureFixture):
    device = open_device("cuda")
    warned = f"no GPU can render here: rendering in software ({device.renderer})" in caplog.text
    assert warned == (not device.is_gpu)


def test_choices_of_the_same_device_are_equal():
    assert open_device("auto") == open_device("cuda")
    assert isinstance(open_device("auto"), GLDevice)
    assert (open_device("auto") == open_device("cpu")) == (not open_device("auto").is_gpu)


def test_threads_that_draw_in_software_at_once_have_two_displays_of_the_same_renderer():
    device = open_device("cpu")
    first, second, third = (device.of_thread(thread) for thread in range(3))
    assert first == third == device
    assert second.renderer == device.renderer
    if device.twin is not None:
        assert second.address != device.address
        second.make_context().free()


def test_a_display_that_another_user_has_ended_is_initialised_again():
    code = """
from vla_envs.vector.gl_context import _egl, open_device
device = open_device("cpu")
before = device.make_context()
_egl().eglMakeCurrent(device.display, _egl().EGL_NO_SURFACE, _egl().EGL_NO_SURFACE, _egl().EGL_NO_CONTEXT)
_egl().eglTerminate(device.display)
after = device.make_context()
before.free()
after.free()
print("drew again")
"""
    result = run_python(code, {"MUJOCO_GL": "egl"})
    assert result.stdout == "drew again\n", result.stderr
    assert not result.stderr


def test_without_a_driver_the_error_names_the_packages():
    for device in ("auto", "cuda", "cpu"):
        result = run_python(f"from vla_envs.vector.gl_context import open_device; open_device({device!r})", NO_DRIVER)
        last_line = result.stderr.strip().splitlines()[-1]
        assert "RenderingUnavailableError" in last_line
        assert PACKAGES in last_line


def test_without_a_driver_an_env_still_plays_without_cameras_and_is_refused_with_one():
    code = """
import gymnasium as gym, numpy as np
envs = gym.make_vec("Libero-v0", num_envs=1, task_ids=[0], cameras=(), detail="fast")
envs.reset(seed=0)
print(envs.step(np.zeros((1, 7)))[4]["num_steps"])
gym.make_vec("Libero-v0", num_envs=1, task_ids=[0], detail="fast")
"""
    result = run_python(code, NO_DRIVER)
    assert result.stdout.strip() == "[1]"
    assert "RenderingUnavailableError" in result.stderr
    assert PACKAGES in result.stderr


def test_another_opengl_platform_than_egl_is_named_as_the_reason():
    code = "from vla_envs.vector.gl_context import open_device; open_device('auto')"
    result = run_python(code, {"PYOPENGL_PLATFORM": "osmesa", "MUJOCO_GL": "off"})
    assert "RenderingUnavailableError" in result.stderr
    assert "PYOPENGL_PLATFORM=osmesa" in result.stderr


def test_where_mujoco_cannot_be_imported_for_want_of_opengl_the_error_says_so():
    result = run_python("import gymnasium as gym; gym.make('Libero-v0')", {"MUJOCO_GL": "a display"})
    last_line = result.stderr.strip().splitlines()[-1]
    assert "RenderingUnavailableError" in last_line
    assert "MUJOCO_GL=a display" in last_line
    assert PACKAGES in last_line
