"""Replays a function as a CUDA graph, made for one set of input shapes: no launch overhead, which is most of the time of
small batches.

Invariant: a graph reads and writes fixed addresses. Inputs are copied in; outputs must be used before the next call; weights
may change between calls, in place. Weights that have moved make every graph void, and all are captured again.

`GraphedFunction` has a graph for each set of shapes that recurs. They share one pool of memory: they never run at once, so
one's activations may lie where those of another, at least as large, did before. So that this comes true in whatever order
shapes occur, a shape larger than all before starts a new pool, and the smaller ones are captured again when they are next
called: together they hold little more than the largest needs.

`GraphedGradients` keeps one graph only, since its activations take most of a GPU: nothing is computed beside it.
"""

import gc
import threading
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

Inputs = tuple[Tensor | None, ...]
Function = Callable[..., tuple[Tensor, ...]]
Capture = Callable[[Function, Inputs], tuple[Callable[[], None], tuple[Tensor, ...]]]
"""Of a function and its inputs: what runs it again on those same tensors, and the outputs that this fills."""

_Shapes = tuple[tuple[torch.Size, torch.dtype] | None, ...]

_CALLS_BEFORE_CAPTURE = 2
"""With the same shapes, made without a graph: the first may compile, and shapes that hardly ever occur are not worth one."""
_CAPTURING = threading.RLock()
"""One at a time: beginning a capture waits for the device, which spoils one that is under way in another thread."""
_MAX_GRAPHS = 64
"""A graph of a large model holds tens of MB of launch parameters; past this many, the one unused for longest goes."""


@dataclass(frozen=True, slots=True)
class _Graph:
    inputs: Inputs
    replay: Callable[[], None]
    outputs: tuple[Tensor, ...]

    def take(self, inputs: Inputs) -> None:
        """Copy inputs to where the graph reads them."""
        for kept, given in zip(self.inputs, inputs, strict=True):
            if kept is not None and given is not None:
                kept.copy_(given)


class GraphedFunction:
    """A function of tensors (or None) on one CUDA device, captured when a set of shapes occurs for the third time.

    Args:
        function: Reads its inputs and the module's weights, and nothing that changes besides.
        module: Whose weights it reads.
        new_capture: Makes what captures; `cuda_graph_capture` but in tests.
    """

    def __init__(self, function: Function, module: nn.Module, *, new_capture: Callable[[], Capture] | None = None) -> None:
        self._function = function
        self._new_capture = cuda_graph_capture if new_capture is None else new_capture
        self._capture: Capture
        self._calls: Counter[_Shapes] = Counter()
        self._graphs: OrderedDict[_Shapes, _Graph] = OrderedDict()
        self._weights = WeightAddresses(module)
        self._addresses = self._weights.now()
        self._largest = 0
        """Elements of the largest inputs captured; 0 before there is a pool."""

    def __call__(self, *inputs: Tensor | None) -> tuple[Tensor, ...]:
        graph = self._find(inputs)
        if graph is None:
            return self._function(*inputs)
        graph.take(inputs)
        graph.replay()
        return graph.outputs

    def _find(self, inputs: Inputs) -> _Graph | None:
        """The graph for these inputs' shapes; None where the function is to be called without one."""
        addresses = self._weights.now()
        if addresses != self._addresses:
            self._graphs.clear()
            self._calls.clear()
            self._largest = 0
            self._addresses = addresses
        shapes = _shapes(inputs)
        graph = self._graphs.get(shapes)
        if graph is None and self._calls[shapes] < _CALLS_BEFORE_CAPTURE:
            self._calls[shapes] += 1
            return None
        if graph is None:
            size = sum(tensor.numel() for tensor in inputs if tensor is not None)
            if size > self._largest:
                self._graphs.clear()
                self._largest = 0
                self._capture = self._new_capture()  # a pool that no graph uses any more cannot be used again
            own = _copies(inputs)
            graph = self._graphs[shapes] = _Graph(own, *self._capture(self._function, own))
            self._largest = max(self._largest, size)
            if len(self._graphs) > _MAX_GRAPHS:
                oldest, _ = self._graphs.popitem(last=False)
                del self._calls[oldest]  # where more shapes than that take turns, hardly any is worth a graph
        self._graphs.move_to_end(shapes)
        return graph


def _shapes(inputs: Inputs) -> _Shapes:
    return tuple(None if tensor is None else (tensor.shape, tensor.dtype) for tensor in inputs)


def _copies(inputs: Inputs) -> Inputs:
    return tuple(None if tensor is None else tensor.clone() for tensor in inputs)


@dataclass(frozen=True, slots=True)
class _GraphWithGradients:
    forward: _Graph
    backward: _Graph
    """From the gradient to the output to those to the parameters."""
    parameters: tuple[nn.Parameter, ...]


class GraphedGradients:
    """A differentiable function of tensors (or None) to one tensor, captured with its backward pass: a training step of small
    micro-batches is bound by launches too.

    There is one graph, of the shapes that came last for the third time in a row. Other shapes discard it, so whoever calls
    this should give shapes that recur: fewer rows padded to `num_rows`.

    Between a call and its `backward` there must be no other call: activations lie where the next call puts its own.

    Args:
        function: Reads its inputs and the module's weights, and nothing that changes besides.
        module: Whose trained weights get gradients.
        new_capture: See `GraphedFunction`.
    """

    def __init__(
        self, function: Callable[..., Tensor], module: nn.Module, *, new_capture: Callable[[], Capture] | None = None
    ) -> None:
        self._function = function
        self._module = module
        self._new_capture = cuda_graph_capture if new_capture is None else new_capture
        self._weights = WeightAddresses(module)
        self._made_for: tuple[_Shapes, tuple[int, ...]] | None = None
        """Shapes and addresses of weights that the graph is for, or will be."""
        self._graph: _GraphWithGradients | None = None
        self._calls_before = 0
        """With these shapes and weights, without a graph."""
        self._num_calls = 0

    @property
    def num_rows(self) -> int:
        """First dimension of the graph's first input; 0 where there is no graph."""
        first = None if self._graph is None else self._graph.forward.inputs[0]
        return 0 if first is None else len(first)

    def __call__(self, *inputs: Tensor | None) -> Tensor:
        self._num_calls += 1
        wanted = _shapes(inputs), self._weights.now()
        if wanted != self._made_for:
            self._made_for, self._calls_before, self._graph = wanted, 0, None  # what it held is free for what follows
        if self._graph is None and self._calls_before < _CALLS_BEFORE_CAPTURE:
            self._calls_before += 1
            return self._function(*inputs)
        if self._graph is None:
            self._graph = self._captured(_copies(inputs))
        self._graph.forward.take(inputs)
        return _Replay.apply(self._graph, self._still_current(self._num_calls), *self._graph.parameters)

    def _captured(self, inputs: Inputs) -> _GraphWithGradients:
        capture = self._new_capture()
        # Not before: weights that are sharded meanwhile would be kept whole.
        parameters = tuple(parameter for parameter in self._module.parameters() if parameter.requires_grad)
        with _stand_ins(self._module) as leaves:
            torch.autograd.grad(self._function(*inputs).sum(), leaves, allow_unused=True)  # compiles what is left to
            forward = _Graph(inputs, *capture(lambda *given: (self._function(*given),), inputs))
            (output,) = forward.outputs

            def backward(gradient: Tensor) -> tuple[Tensor, ...]:
                gradients = torch.autograd.grad(output, leaves, gradient, allow_unused=True)
                return tuple(gradients)  # type: ignore[arg-type]

            gradient = (torch.zeros_like(output),)
            both = _GraphWithGradients(forward, _Graph(gradient, *capture(backward, gradient)), parameters)
        # What the output keeps alive is not needed any more: the graphs know its addresses.
        return replace(both, forward=replace(forward, outputs=(output.detach(),)))

    def _still_current(self, number: int) -> Callable[[], bool]:
        return lambda: self._num_calls == number


@contextmanager
def _stand_ins(module: nn.Module) -> Iterator[tuple[nn.Parameter, ...]]:
    """Put in the place of each trained weight another of the same memory, and give those, in the weights' order.

    Autograd has one node for a weight's gradient, of the stream where it was first used, for as long as any loss refers to it:
    one of an earlier call that somebody still holds would draw its stream into the capture, which CUDA forbids.
    """
    slots = [
        (part._parameters, name, weight)
        for part in module.modules()
        for name, weight in part._parameters.items()
        if weight is not None and weight.requires_grad
    ]
    new = {id(weight): nn.Parameter(weight.detach()) for _, _, weight in slots}
    try:
        for parameters, name, weight in slots:
            parameters[name] = new[id(weight)]
        yield tuple(new.values())
    finally:
        for parameters, name, weight in slots:
            parameters[name] = weight


class _Replay(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, graph: _GraphWithGradients, still_current: Callable[[], bool], *parameters: Tensor) -> Tensor:
        graph.forward.replay()
        ctx.graph, ctx.still_current = graph, still_current
        return graph.forward.outputs[0].detach()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        if not ctx.still_current():
            raise RuntimeError("call backward() on what `evaluate` gave before you evaluate anything else")
        backward = ctx.graph.backward
        backward.take((gradient,))
        backward.replay()
        return None, None, *(None if value is None else value.detach() for value in backward.outputs)


class WeightAddresses:
    """Where a module's parameters and buffers lie in memory. Follows those that are replaced, without keeping old ones."""

    def __init__(self, module: nn.Module) -> None:
        self._slots = [
            (tensors, name)
            for part in module.modules()
            for tensors in (part._parameters, part._buffers)
            for name, tensor in tensors.items()
            if tensor is not None
        ]

    def now(self) -> tuple[int, ...]:
        """One address per weight, in a fixed order; 0 for one that is gone."""
        return tuple(0 if (tensor := tensors.get(name)) is None else tensor.data_ptr() for tensors, name in self._slots)


def cuda_graph_capture() -> Capture:
    """Captures CUDA graphs into one pool of memory."""
    pool = torch.cuda.graph_pool_handle()

    def capture(function: Function, inputs: Inputs) -> tuple[Callable[[], None], tuple[Tensor, ...]]:
        graph = torch.cuda.CUDAGraph()
        device = next(tensor.device for tensor in inputs if tensor is not None)
        # The present device is the thread's own, and all but the main thread begin with the first of the machine.
        # "thread_local": simulators and the trainer may use the device meanwhile, from threads of their own.
        with (
            _CAPTURING,
            _no_garbage_collection(),
            torch.cuda.device(device),
            torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"),
        ):
            outputs = function(*inputs)
        return graph.replay, outputs

    return capture


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """Collect garbage now and not meanwhile: a graph that is freed while another is captured would spoil that one."""
    gc.collect()
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
