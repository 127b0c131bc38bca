"""An EGL with devices made up for a test, called through the same addresses as the real one; handle i + 1 is device i."""

import ctypes
from dataclasses import dataclass
from uuid import UUID

SOFTWARE = "EGL_MESA_device_software"
GPU = "EGL_NV_device_cuda EGL_EXT_device_persistent_id"

_CUDA_DEVICE, _DEVICE_UUID = 0x323A, 0x335C


@dataclass(frozen=True, kw_only=True)
class FakeDevice:
    """What it tells of itself."""

    extensions: str = GPU
    cuda_ordinal: int | None = None
    uuid: str | None = None


class FakeEGL:
    """Knows the functions that devices are listed and queried with.

    Args:
        devices: In EGL's order.
        missing: Functions that this EGL does not have.
    """

    def __init__(self, devices: list[FakeDevice], missing: tuple[str, ...] = ()) -> None:
        self._devices = devices
        self.pending_error = False
        texts = [ctypes.create_string_buffer(device.extensions.encode()) for device in devices]
        integer, pointer = ctypes.c_int, ctypes.c_void_p

        def query_string(handle: int, name: int) -> int:
            return ctypes.addressof(texts[handle - 1])

        def query_attribute(handle: int, name: int, value: int) -> int:
            ordinal = devices[handle - 1].cuda_ordinal
            if name != _CUDA_DEVICE or ordinal is None:
                self.pending_error = True
                return 0
            ctypes.c_ssize_t.from_address(value).value = ordinal
            return 1

        def query_binary(handle: int, name: int, room: int, value: int, size: int) -> int:
            uuid = devices[handle - 1].uuid
            if name != _DEVICE_UUID or uuid is None or room < 16:
                self.pending_error = True
                return 0
            ctypes.memmove(value, UUID(uuid.removeprefix("GPU-")).bytes, 16)
            integer.from_address(size).value = 16
            return 1

        def last_error() -> int:
            self.pending_error = False
            return 0x3000

        self._functions = {
            b"eglQueryDeviceStringEXT": ctypes.CFUNCTYPE(pointer, pointer, integer)(query_string),
            b"eglQueryDeviceAttribEXT": ctypes.CFUNCTYPE(ctypes.c_uint, pointer, integer, pointer)(query_attribute),
            b"eglQueryDeviceBinaryEXT": ctypes.CFUNCTYPE(ctypes.c_uint, pointer, integer, integer, pointer, pointer)(
                query_binary
            ),
            b"eglGetError": ctypes.CFUNCTYPE(integer)(last_error),
        }
        for name in missing:
            del self._functions[name.encode()]

    def eglQueryDevicesEXT(self, max_devices: int) -> list[ctypes.c_void_p]:  # noqa: N802 # EGL's name
        return [ctypes.c_void_p(index + 1) for index in range(min(max_devices, len(self._devices)))]

    def eglGetProcAddress(self, name: bytes) -> int | None:  # noqa: N802 # EGL's name
        if self.pending_error:
            raise OSError("EGL_BAD_ATTRIBUTE")  # as the bindings do for an error that an earlier call has left
        function = self._functions.get(name)
        return ctypes.cast(function, ctypes.c_void_p).value if function else None
