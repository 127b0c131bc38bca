"""Replays a function as a CUDA graph, one graph per set of input shapes: no launch overhead, which is most of the time of
small batches.

Invariant: a graph reads and writes fixed addresses, so inputs are copied in and outputs must be used before the next call.
Weights may change between calls, in place.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

Inputs = tuple[Tensor | None, ...]
_WARM_UP_CALLS = 3


@dataclass(frozen=True, slots=True)
class _Capture:
    graph: torch.cuda.CUDAGraph
    inputs: Inputs
    outputs: tuple[Tensor, ...]


class GraphedFunction:
    """A function of tensors (or None) on one CUDA device, captured at the first call with each set of shapes."""

    def __init__(self, function: Callable[..., tuple[Tensor, ...]]) -> None:
        self._function = function
        self._captures: dict[tuple[tuple[torch.Size, torch.dtype] | None, ...], _Capture] = {}
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, *inputs: Tensor | None) -> tuple[Tensor, ...]:
        key = tuple(None if tensor is None else (tensor.shape, tensor.dtype) for tensor in inputs)
        capture = self._captures.get(key)
        if capture is None:
            capture = self._captures[key] = self._capture(inputs)
        for held, given in zip(capture.inputs, inputs, strict=True):
            if held is not None and given is not None:
                held.copy_(given)
        capture.graph.replay()
        return capture.outputs

    def _capture(self, inputs: Inputs) -> _Capture:
        held = tuple(None if tensor is None else tensor.clone() for tensor in inputs)
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(_WARM_UP_CALLS):
                self._function(*held)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            outputs = self._function(*held)
        return _Capture(graph, held, outputs)
