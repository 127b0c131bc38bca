"""EGL's devices, and which of them this process should draw on first.

With several GPUs, a process draws on the one that it computes on. `MUJOCO_EGL_DEVICE_ID` names it as an index into EGL's list;
else it is the first of `CUDA_VISIBLE_DEVICES`, or, with several ranks on a host, the one at place `LOCAL_RANK` of it. These are
preferences: where the preferred GPU is unknown or cannot draw, another one does.

NVIDIA's drivers number EGL's devices (`EGL_CUDA_DEVICE_NV`) by their places in `CUDA_VISIBLE_DEVICES`; a hidden device has no
number. If a number lies past the end of that list, the driver has numbered all devices: then the list's entries are numbers.

Invariant: what EGL cannot or will not tell of a device is None; no query raises. OpenGL's Python bindings would: they look for
an extension of a display that does not exist yet. So the functions are called by address.
"""

import ctypes
import logging
import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any
from uuid import UUID

logger = logging.getLogger(__name__)

_MAX_DEVICES = 256
_EGL_EXTENSIONS = 0x3055
_EGL_CUDA_DEVICE_NV = 0x323A
_EGL_DEVICE_UUID_EXT = 0x335C
_UUID_BYTES = 16


class EGLDevice:
    """One device, as EGL lists it; asked about itself no earlier than need be, since the answer may initialise CUDA.

    Args:
        egl: `mujoco.egl.egl_ext`.
        index: In EGL's list.
        handle: What EGL's functions take.
    """

    def __init__(self, egl: Any, index: int, handle: Any) -> None:
        self._egl, self._address = egl, ctypes.cast(handle, ctypes.c_void_p).value
        self.index, self.handle = index, handle

    @cached_property
    def is_gpu(self) -> bool:
        """Whether it is not known to be software."""
        return "EGL_MESA_device_software" not in self._extensions

    @cached_property
    def cuda_ordinal(self) -> int | None:
        """NVIDIA's number of it; see above."""
        ordinal = ctypes.c_ssize_t(-1)
        types = (ctypes.c_uint, ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p)
        known = "EGL_NV_device_cuda" in self._extensions and self._query(
            "eglQueryDeviceAttribEXT", types, _EGL_CUDA_DEVICE_NV, ctypes.addressof(ordinal)
        )
        return ordinal.value if known and ordinal.value >= 0 else None

    @cached_property
    def uuid(self) -> str | None:
        """For example "GPU-1d4b0c2e-...", as `nvidia-smi -L` has it."""
        uuid, size = ctypes.create_string_buffer(_UUID_BYTES), ctypes.c_int()
        types = (ctypes.c_uint, ctypes.c_void_p, ctypes.c_int, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)
        arguments = (_EGL_DEVICE_UUID_EXT, _UUID_BYTES, ctypes.addressof(uuid), ctypes.addressof(size))
        known = "EGL_EXT_device_persistent_id" in self._extensions and self._query("eglQueryDeviceBinaryEXT", types, *arguments)
        return f"GPU-{UUID(bytes=uuid.raw)}" if known and size.value == _UUID_BYTES else None

    def __str__(self) -> str:
        cuda = "" if self.cuda_ordinal is None else f", CUDA device {self.cuda_ordinal}"
        return f"EGL device {self.index}{cuda}{f', {self.uuid}' if self.uuid else ''}"

    @cached_property
    def _extensions(self) -> list[str]:
        text = self._query("eglQueryDeviceStringEXT", (ctypes.c_char_p, ctypes.c_void_p, ctypes.c_int), _EGL_EXTENSIONS)
        return (text or b"").decode().split()

    def _query(self, name: str, types: Sequence[Any], *arguments: Any) -> Any:
        """What an EGL function of these types (result, device, other arguments) answers; None if there is none, or it fails."""
        query, last_error = self._function(name, *types), self._function("eglGetError", ctypes.c_int)
        answer = query(self._address, *arguments) if query else None
        if not answer and last_error:
            last_error()  # takes it off EGL: the bindings would find it after their next call, and raise
        return answer or None

    def _function(self, name: str, *types: Any) -> Any:
        """An EGL function of these types (result, arguments), or None."""
        try:
            address = ctypes.cast(self._egl.eglGetProcAddress(name.encode()), ctypes.c_void_p).value
        except Exception as error:  # the bindings raise errors that other calls have left behind
            logger.debug("EGL does not give %s: %r", name, error)
            return None
        return ctypes.CFUNCTYPE(*types)(address) if address else None


def list_devices(egl: Any) -> list[EGLDevice]:
    """All devices in EGL's order.

    Args:
        egl: `mujoco.egl.egl_ext`.

    Raises:
        Exception: EGL cannot list them.
    """
    return [EGLDevice(egl, index, handle) for index, handle in enumerate(egl.eglQueryDevicesEXT(_MAX_DEVICES))]


def in_order_of_preference(devices: Sequence[EGLDevice], environment: Mapping[str, str]) -> list[EGLDevice]:
    """The preferred device, then the other GPUs, then software; equal ones as EGL lists them.

    Args:
        devices: As EGL lists them.
        environment: The process's environment variables.

    Raises:
        ValueError: `MUJOCO_EGL_DEVICE_ID` is not an index into the list.
    """
    preferred = named_device(devices, environment) or _gpu_of_this_process(devices, environment)
    return sorted(devices, key=lambda device: (device is not preferred, not device.is_gpu))


def named_device(devices: Sequence[EGLDevice], environment: Mapping[str, str]) -> EGLDevice | None:
    """The device that `MUJOCO_EGL_DEVICE_ID` names; None if it is not set. Arguments and errors as above."""
    index = environment.get("MUJOCO_EGL_DEVICE_ID", "").strip()
    if not index:
        return None
    if not index.isdecimal() or int(index) >= len(devices):
        raise ValueError(
            f"MUJOCO_EGL_DEVICE_ID must be the place of a device in EGL's list of {len(devices)}, counted from 0, got {index!r}"
        )
    return devices[int(index)]


def local_rank(environment: Mapping[str, str]) -> int | None:
    """This process's number among those of its host, as torchrun counts them; None if it is not one of several."""
    rank = environment.get("LOCAL_RANK", "")
    return int(rank) if rank.isdecimal() else None


def _gpu_of_this_process(devices: Sequence[EGLDevice], environment: Mapping[str, str]) -> EGLDevice | None:
    """The GPU that this process computes on; None if it cannot be told."""
    gpus = [device for device in devices if device.is_gpu]
    if len(gpus) <= 1:
        return gpus[0] if gpus else None
    rank = local_rank(environment) or 0
    visible = _visible_devices(environment.get("CUDA_VISIBLE_DEVICES"))
    if visible:
        return _visible_gpu(gpus, visible, rank % len(visible))
    numbered = sorted((gpu for gpu in gpus if gpu.cuda_ordinal is not None), key=lambda gpu: gpu.cuda_ordinal or 0)
    candidates = numbered or gpus
    return candidates[rank % len(candidates)]


def _visible_devices(value: str | None) -> list[str]:
    """What `CUDA_VISIBLE_DEVICES` lists before its first entry that names no device; CUDA stops reading there."""
    entries = []
    for entry in (value or "").split(","):
        if not re.fullmatch(r"\d+|(GPU|MIG)-.+", entry.strip()):
            break
        entries.append(entry.strip())
    return entries


def _visible_gpu(gpus: Sequence[EGLDevice], visible: Sequence[str], place: int) -> EGLDevice | None:
    """The GPU at this place among the visible ones; None if it cannot be told."""
    entry = visible[place]
    if not entry.isdecimal():
        uuid = entry.removeprefix("MIG-") if entry.startswith("MIG-GPU-") else entry  # MIG-GPU-<uuid>/<instance>/<instance>
        named = [gpu for gpu in gpus if gpu.uuid and gpu.uuid.startswith(uuid.split("/")[0])]
        if named:
            return named[0]
    ordinals = {gpu.cuda_ordinal for gpu in gpus if gpu.cuda_ordinal is not None}
    counts_hidden = any(ordinal >= len(visible) for ordinal in ordinals)
    wanted = int(entry) if counts_hidden and entry.isdecimal() else place
    return next((gpu for gpu in gpus if gpu.cuda_ordinal == wanted), None)
