"""OpenGL contexts without a window: on the GPU where there is one, in software otherwise.

The choice is made once per process and device argument; `GLDevice.renderer` and the log say what it is.

Displays are left initialised until the process ends, since other users of EGL may share them, and Mesa keeps its worker
threads. One that another user has ended, as pygame does when a window closes, is initialised again.
Threads do not outlive a fork: a process forked after a display was opened is refused a device. Before that, forking is safe.
"""

import ctypes
import logging
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any, Literal

from vla_envs.errors import RenderingUnavailableError
from vla_envs.vector.egl_devices import EGLDevice, in_order_of_preference, list_devices, local_rank, named_device
from vla_envs.vector.mesa_driver import keep_driver_local

logger = logging.getLogger(__name__)

Device = Literal["auto", "cuda", "cpu"]

_PACKAGES = "libegl1 libgl1 libgl1-mesa-dri"
_EGL_PLATFORM_SURFACELESS_MESA = 0x31DD
_GL_RENDERER = 0x1F01

_openers: set[int] = set()
"""Ids of the processes that have opened displays: this one, and any that it was forked from after it had."""
_choices_lock = threading.Lock()


@dataclass(frozen=True, kw_only=True)
class GLDevice:
    """An EGL display on which contexts can be made, in any thread; equal to any other on the same display."""

    renderer: str
    """What OpenGL calls the device, for example "llvmpipe (LLVM 15.0.6, 256 bits)"."""
    is_gpu: bool
    address: int | None
    """Of the EGL display."""
    display: Any = field(compare=False)
    twin: "GLDevice | None" = field(default=None, compare=False)
    """The same software behind another display: contexts of one display take turns at filling triangles."""

    def of_thread(self, thread: int) -> "GLDevice":
        """The display for one of several threads that draw at once, counted from 0."""
        return self.twin if self.twin is not None and thread % 2 == 1 else self

    def make_context(self) -> "GLContext":
        """A context of the calling thread, made current there."""
        return GLContext(self)


class GLContext:
    """An OpenGL context that belongs to the thread that made it."""

    def __init__(self, device: GLDevice) -> None:
        egl = self._egl = _egl()
        self._display = device.display
        egl.eglBindAPI(egl.EGL_OPENGL_API)
        self._context = egl.eglCreateContext(device.display, _initialise(device.display), egl.EGL_NO_CONTEXT, None)
        if not self._context:
            raise RenderingUnavailableError(f"no OpenGL context could be made on {device.renderer}")
        if not egl.eglMakeCurrent(device.display, egl.EGL_NO_SURFACE, egl.EGL_NO_SURFACE, self._context):
            raise RenderingUnavailableError(f"no OpenGL context could be made current on {device.renderer}")

    def free(self) -> None:
        """Destroy the context; call it in its own thread."""
        if self._context:
            egl, context, self._context = self._egl, self._context, None
            with suppress(Exception):  # of PyOpenGL: the display has ended, and the context with it
                egl.eglMakeCurrent(self._display, egl.EGL_NO_SURFACE, egl.EGL_NO_SURFACE, egl.EGL_NO_CONTEXT)
                egl.eglDestroyContext(self._display, context)
            egl.eglReleaseThread()


def check_device(device: Device) -> None:
    """Find out whether there is anything to draw with, without opening a display: forking is as safe afterwards as before.

    Raises:
        ValueError: `MUJOCO_EGL_DEVICE_ID` names no device.
        RenderingUnavailableError: There is not, or it is of no use to a forked process; see `open_device`.
    """
    _check_not_forked()
    devices = _list_devices()
    named_device(devices, os.environ)
    if not any(_will_do(found, device) for found in devices):
        raise _unavailable(device, [])


def open_device(device: Device) -> GLDevice:
    """The GPU for "cuda" and "auto" where there is one, else software ("cuda" then warns); "cpu" is always software.

    With several GPUs, the environment decides; see `egl_devices`.

    Raises:
        ValueError: `MUJOCO_EGL_DEVICE_ID` names no device.
        RenderingUnavailableError: There is no usable OpenGL; names the system packages to install. Or this process was forked
            from one that had opened a display.
    """
    _check_not_forked()
    with _choices_lock:
        return _choose_device(device)


@cache
def _choose_device(device: Device) -> GLDevice:
    os.environ.setdefault("MUJOCO_GL", "egl")  # MuJoCo asks it where to look up OpenGL's functions
    reasons = []
    for found in in_order_of_preference(_list_devices(), os.environ):
        if not _will_do(found, device):
            continue
        try:
            display = _egl().eglGetPlatformDisplayEXT(_egl().EGL_PLATFORM_DEVICE_EXT, found.handle, None)
            opened = _open(display, is_gpu=found.is_gpu)
        except Exception as error:  # drivers fail in many ways; what counts is whether another one works
            reasons.append(repr(error))
            continue
        if device == "cuda" and not opened.is_gpu:
            logger.warning("no GPU can render here: rendering in software (%s)", opened.renderer)
        _log_once(_description(opened, found))
        return opened if opened.is_gpu else replace(opened, twin=_twin(opened))
    raise _unavailable(device, reasons)


def _check_not_forked() -> None:
    if _openers - {os.getpid()}:
        raise RenderingUnavailableError(
            "this process was forked from one that has drawn with OpenGL, whose threads do not exist here: "
            "start it with the 'spawn' method (AsyncVectorEnv: context='spawn')"
        )


def _unavailable(device: Device, reasons: list[str]) -> RenderingUnavailableError:
    detail = f" ({'; '.join(reasons)})" if reasons else ""
    return RenderingUnavailableError(
        f"no {'software ' if device == 'cpu' else ''}OpenGL device can render here{detail}. "
        f"Install it: apt-get install {_PACKAGES} (on a GPU machine, also the driver's libnvidia-gl)"
    )


def _will_do(found: EGLDevice, device: Device) -> bool:
    return not (device == "cpu" and found.is_gpu)


def _list_devices() -> list[EGLDevice]:
    try:
        return list_devices(_egl())
    except Exception as error:  # without EGL, its bindings fail in many ways
        platform = os.environ.get("PYOPENGL_PLATFORM", "egl")
        if platform != "egl":
            chosen_by = f"PYOPENGL_PLATFORM={platform} (MuJoCo sets it where MUJOCO_GL={platform})"
            raise RenderingUnavailableError(f"EGL draws here, but {chosen_by} rules it out: set MUJOCO_GL=egl alone") from error
        raise RenderingUnavailableError(
            f"EGL is missing or too old ({error!r}). Install it: apt-get install {_PACKAGES}"
        ) from error


def _egl() -> Any:
    """EGL's bindings; importing them loads the library, and fails where there is none."""
    from mujoco.egl import egl_ext

    return egl_ext


def _description(opened: GLDevice, found: EGLDevice) -> str:
    """What draws and, among several ranks, whose it is."""
    rank = local_rank(os.environ)
    whose = "" if rank is None else f"rank {os.environ.get('RANK', rank)} (local rank {rank}) is "
    return f"{whose}rendering on {opened.renderer}{f' ({found})' if found.is_gpu else ''}"


@cache
def _log_once(message: str) -> None:
    logger.info(message)


def _twin(device: GLDevice) -> GLDevice | None:
    """Another display that draws with the same software, if there is one."""
    egl = _egl()
    try:
        twin = _open(egl.eglGetPlatformDisplayEXT(_EGL_PLATFORM_SURFACELESS_MESA, None, None), is_gpu=False)
    except Exception as error:  # as above; it is only slower without
        logger.debug("no second display: %r", error)
        return None
    return twin if twin.renderer == device.renderer and twin != device else None


def _open(display: Any, *, is_gpu: bool) -> GLDevice:
    """Initialise a display, make one context on it and ask it who it is."""
    with ThreadPoolExecutor(1) as probe:  # the calling thread may have a context of its own
        return probe.submit(_probe, display, is_gpu=is_gpu).result()


def _probe(display: Any, *, is_gpu: bool) -> GLDevice:
    egl = _egl()
    _openers.add(os.getpid())
    keep_driver_local()
    if display == egl.EGL_NO_DISPLAY:
        raise RenderingUnavailableError("there is no EGL display")
    address = ctypes.cast(display, ctypes.c_void_p).value
    device = GLDevice(renderer="an EGL device", is_gpu=is_gpu, address=address, display=display)
    context = device.make_context()
    try:
        get_string = ctypes.cast(egl.eglGetProcAddress(b"glGetString"), ctypes.c_void_p).value
        assert get_string is not None
        name = ctypes.CFUNCTYPE(ctypes.c_char_p, ctypes.c_uint)(get_string)(_GL_RENDERER)
    finally:
        context.free()
    renderer = (name or b"unknown").decode()
    in_software = any(word in renderer.lower() for word in ("llvmpipe", "softpipe", "swrast"))
    if in_software == is_gpu:
        raise RenderingUnavailableError(f"{renderer} is not {'a GPU' if is_gpu else 'in software'}")
    return replace(device, renderer=renderer)


def _initialise(display: Any) -> Any:
    """Initialise a display, which does nothing where it is; returns the configuration of contexts on it."""
    from mujoco.egl import EGL_ATTRIBUTES

    egl = _egl()
    if egl.eglInitialize(display, None, None) != egl.EGL_TRUE:
        raise RenderingUnavailableError("an EGL display could not be initialised")
    configs = (egl.EGLConfig * 1)()
    num_configs = ctypes.c_long()
    egl.eglChooseConfig(display, EGL_ATTRIBUTES, configs, 1, num_configs)
    if num_configs.value < 1:
        raise RenderingUnavailableError("no EGL configuration fits")
    return configs[0]
