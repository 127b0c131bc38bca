"""A device that Warp runs on, as one engine uses it.

Warp's current device and stream belong to the whole process. Engines in several threads therefore take turns to hand out work,
which takes little time, and wait for it outside their turn. Each has a stream of its own, ahead of other work on the GPU:
physics is many small kernels, which would otherwise wait behind a model's large ones.

Invariant: Warp gives freed memory to any stream at once, whoever still works with it. So arrays are freed in a turn, with the
work on them done (`wait`), and what a call needs every time is allocated once, or belongs to a CUDA graph (`Replayed`).
"""

import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from importlib.util import find_spec
from typing import Any

import warp as wp

from vla_envs.vector.gl_context import Device

_log = logging.getLogger(__name__)
_turn = threading.RLock()
_SILENCE_S = 10.0


class Replayed:
    """A list of launches that is always the same: captured at the first call and replayed as a CUDA graph, where there is CUDA.

    Args:
        launches: Launches them; reads nothing on the host that may change.
    """

    def __init__(self, launches: Callable[[], None]) -> None:
        self._launches = launches
        self._called = False
        self._graph: Any = None

    def __call__(self) -> None:
        if self._graph is not None:
            wp.capture_launch(self._graph)
        elif self._called:
            self._launches()
        else:
            with silence_explained():
                self._call_first()
            self._called = True

    def _call_first(self) -> None:
        """Compiles what is not compiled yet."""
        if not wp.get_device().is_cuda:
            self._launches()
            return
        with wp.ScopedCapture() as capture:
            self._launches()
        self._graph = capture.graph
        wp.capture_launch(self._graph)


@contextmanager
def silence_explained() -> Iterator[None]:
    """Say after ten seconds that kernels are being compiled."""
    says = "Warp compiles kernels for this scene and device: minutes the first time, seconds from its cache afterwards"
    timer = threading.Timer(_SILENCE_S, _log.warning, (says,))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def wait() -> None:
    """Wait for all work of this turn's stream."""
    if wp.get_device().is_cuda:
        wp.synchronize_stream(wp.get_stream())


class WarpDevice:
    """The first GPU that Warp can use, or the CPU.

    Args:
        wanted: "cuda", "cpu", or "auto": the GPU where there is one.

    Raises:
        ValueError: A GPU is asked for, and Warp can use none.
    """

    def __init__(self, wanted: Device) -> None:
        wp.config.log_level = wp.LOG_WARNING
        if wanted == "cuda" and not wp.is_cuda_available():
            raise ValueError(f"device='cuda': {_why_no_cuda()}; device='cpu' simulates on Warp's CPU device, slowly")
        if wanted == "auto" and not wp.is_cuda_available():
            _log.warning("%s: Warp simulates on the CPU, where backend='mujoco' is many times faster", _why_no_cuda())
        on_gpu = wanted != "cpu" and wp.is_cuda_available()
        self._device = wp.get_device("cuda:0" if on_gpu else "cpu")
        self._torch_stream: Any = None
        """PyTorch's view of the stream; None on a CPU, or without PyTorch."""
        self._stream: wp.Stream | None = None
        if on_gpu and find_spec("torch") is not None:
            import torch

            # A stream of Warp's own would wait for all that PyTorch does in its default stream.
            self._torch_stream = torch.cuda.Stream(0, priority=-1)
            self._stream = wp.stream_from_torch(self._torch_stream)
        elif on_gpu:
            self._stream = wp.Stream(self._device, priority=-1)

    @property
    def is_gpu(self) -> bool:
        """Whether it is one."""
        return bool(self._device.is_cuda)

    @property
    def name(self) -> str:
        """For example "NVIDIA H100 80GB HBM3"."""
        return str(self._device.name)

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Hand out work; everything of Warp goes to this device and its stream meanwhile."""
        with _turn, wp.ScopedDevice(self._device):
            if self._stream is None:
                yield
            else:
                with wp.ScopedStream(self._stream, sync_enter=False):
                    yield

    def wait(self) -> None:
        """Wait for all work that was handed out; call it outside of a turn."""
        if self._stream is not None:
            wp.synchronize_stream(self._stream)

    def room_on_host(self, array: wp.array) -> wp.array:
        """An array on the host like one of the device; pinned, so that copying goes on while this thread does."""
        return wp.empty(array.shape, dtype=array.dtype, device="cpu", pinned=self.is_gpu)

    def gather_tensors(self, parts: Sequence[tuple[wp.array, Sequence[int], Sequence[int]]]) -> Any:
        """A PyTorch tensor (n, ...) of rows of the device's arrays, which together have n; a copy.

        Args:
            parts: An array, the rows of the tensor that it fills, and its own rows that go there; each.
        """
        import torch

        first = wp.to_torch(parts[0][0], requires_grad=False)
        with self.turn(), self._torch_on_stream():
            gathered = first.new_empty((sum(len(rows) for _, rows, _ in parts), *first.shape[1:]))
            for array, rows, taken in parts:
                gathered[list(rows)] = wp.to_torch(array, requires_grad=False)[list(taken)]
        self.wait()
        if self.is_gpu:
            gathered.record_stream(torch.cuda.current_stream())  # where it will be read
        return gathered

    def spread_tensor(self, tensor: Any, places: Sequence[int], count: int) -> Any:
        """(K, count, ...) on the device from a PyTorch tensor (n, K, ...): its rows, put at these places; zeros elsewhere.

        Call it in a turn.
        """
        import torch

        if self._torch_stream is not None:
            self._torch_stream.wait_stream(torch.cuda.current_stream())
        with self._torch_on_stream():
            spread = tensor.new_zeros((tensor.shape[1], count, *tensor.shape[2:]))
            spread[:, list(places)] = tensor.transpose(0, 1)
            return spread

    def _torch_on_stream(self) -> AbstractContextManager[Any]:
        """PyTorch's work of this thread goes to the stream, too."""
        if self._torch_stream is None:
            return nullcontext()
        import torch

        return torch.cuda.stream(self._torch_stream)


def _why_no_cuda() -> str:
    driver = wp.get_cuda_driver_version()
    if driver is None:
        return "there is no CUDA driver here"
    toolkit = wp.get_cuda_toolkit_version()
    if toolkit is not None and driver < (toolkit[0], 0):
        return f"Warp {wp.__version__} needs a driver of CUDA {toolkit[0]}, here is one of {driver[0]}.{driver[1]}"
    return "Warp finds no CUDA device here"
