"""The bookkeeping of graphs, held to a stand-in for CUDA's on any machine, and to CUDA's on a GPU."""

import pytest
import torch
from torch import Tensor, nn

from vla_train.policy import cuda_graphs
from vla_train.policy.cuda_graphs import GraphedFunction, GraphedGradients, WeightAddresses


class _Recorder:
    """Captures like CUDA: what a replay reads is fixed, tensors and weights' memory alike."""

    def __init__(self) -> None:
        self.captures = 0
        self.pools = 0

    def __call__(self):
        self.pools += 1

        def capture(function, inputs):
            self.captures += 1
            outputs = function(*inputs)

            def replay() -> None:
                for kept, new in zip(outputs, function(*inputs), strict=True):
                    kept.copy_(new)

            return replay, outputs

        return capture


def _module() -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(4, 3)


def _graphed(module: nn.Module, recorder: _Recorder) -> GraphedFunction:
    def function(x: Tensor, offset: Tensor | None) -> tuple[Tensor]:
        return (module(x) if offset is None else module(x) + offset,)

    return GraphedFunction(function, module, new_capture=recorder)


@torch.no_grad()
def test_each_set_of_shapes_is_captured_at_its_third_call_and_then_replayed_with_its_inputs():
    module, recorder = _module(), _Recorder()
    graphed = _graphed(module, recorder)
    for captures in (0, 0, 3, 3):
        for rows, offset in ((5, None), (2, None), (2, torch.ones(()))):
            x = torch.randn(rows, 4)
            [out] = graphed(x, offset)
            torch.testing.assert_close(out, module(x) + (0 if offset is None else offset))
        assert recorder.captures == captures


@torch.no_grad()
def test_a_shape_larger_than_all_before_starts_a_new_pool_into_which_the_smaller_ones_follow():
    module, recorder = _module(), _Recorder()
    graphed = _graphed(module, recorder)
    numbers = []
    for rows in (2, 2, 2, 5, 5, 5, 2, 5, 2):
        x = torch.randn(rows, 4)
        torch.testing.assert_close(graphed(x, None)[0], module(x))
        numbers.append((recorder.pools, recorder.captures))
    assert numbers == [(0, 0), (0, 0), (1, 1), (1, 1), (1, 1), (2, 2), (2, 3), (2, 3), (2, 3)]


@torch.no_grad()
def test_weights_changed_in_place_are_seen_without_a_new_capture():
    module, recorder = _module(), _Recorder()
    graphed, x = _graphed(module, recorder), torch.randn(2, 4)
    for _ in range(3):
        graphed(x, None)
    module.weight.mul_(2)
    torch.testing.assert_close(graphed(x, None)[0], module(x))
    assert (recorder.captures, recorder.pools) == (1, 1)


@torch.no_grad()
@pytest.mark.parametrize("move", [lambda module: module.double().float(), lambda module: setattr(module, "bias", None)])
def test_weights_that_have_moved_void_all_graphs(move):
    module, recorder = _module(), _Recorder()
    graphed, x = _graphed(module, recorder), torch.randn(2, 4)
    for change in (lambda module: None, move):
        change(module)
        for _ in range(3):
            torch.testing.assert_close(graphed(x, None)[0], module(x))
    assert (recorder.captures, recorder.pools) == (2, 2)


def test_addresses_change_with_new_tensors_only():
    module = nn.BatchNorm1d(3)
    weights = WeightAddresses(module)
    before = weights.now()
    module.running_mean.add_(1)
    assert weights.now() == before
    module.running_mean = torch.zeros(3)
    assert weights.now() != before


@torch.no_grad()
def test_the_graph_unused_for_longest_goes_when_there_are_too_many(monkeypatch):
    monkeypatch.setattr(cuda_graphs, "_MAX_GRAPHS", 2)
    recorder = _Recorder()
    graphed = _graphed(_module(), recorder)
    for rows in (3, 3, 3, 2, 2, 2, 3, 1, 1, 1, 3):
        graphed(torch.randn(rows, 4), None)
    assert recorder.captures == 3
    for captures in (3, 3, 4):  # it earns its graph anew
        graphed(torch.randn(2, 4), None)
        assert recorder.captures == captures


@pytest.mark.gpu
@torch.no_grad()
def test_cudas_graphs_see_new_inputs_new_weights_and_moved_weights():
    module = _module().cuda()
    graphed = GraphedFunction(lambda x: (module(x),), module)
    for change in (lambda: None, lambda: module.weight.mul_(2), lambda: module.double().float()):
        change()
        for rows in (2, 5) * 4:
            x = torch.randn(rows, 4, device="cuda")
            torch.testing.assert_close(graphed(x)[0], module(x))


@pytest.mark.gpu
@torch.no_grad()
def test_graphs_of_growing_shapes_hold_little_more_memory_than_the_largest():
    module = nn.Sequential(*(nn.Linear(1024, 1024) for _ in range(8))).cuda()
    used = {}
    for sizes in ((64,), (8, 16, 24, 32, 40, 48, 56, 64)):
        torch.cuda.empty_cache()
        before = torch.cuda.memory_reserved()
        graphed = GraphedFunction(lambda x: (module(x).sum(),), module)
        for size in sizes * 5:
            graphed(torch.randn(1024 * size, 1024, device="cuda"))
        torch.cuda.empty_cache()
        inputs = 4 * 1024 * 1024 * sum(sizes)
        used[sizes] = torch.cuda.memory_reserved() - before - inputs
        del graphed
    assert used[8, 16, 24, 32, 40, 48, 56, 64] < 3 * used[64,]


def _differentiable(module: nn.Module, **options) -> GraphedGradients:
    def function(x: Tensor, offset: Tensor | None) -> Tensor:
        return module(x).tanh() + (0 if offset is None else offset)

    return GraphedGradients(function, module, **options)


def _gradients(call, module: nn.Module, x: Tensor) -> dict[str, Tensor]:
    module.zero_grad()
    y = call(x, None)
    (y * torch.arange(1.0, 4.0, device=x.device)).sum().backward()
    return {"y": y.detach().clone(), **{name: parameter.grad.clone() for name, parameter in module.named_parameters()}}


def test_one_graph_of_gradients_is_kept_and_makes_room_for_other_shapes_before_they_are_computed():
    module, recorder = _module(), _Recorder()
    graphed = _differentiable(module, new_capture=recorder)
    seen = []
    for rows in (2, 2, 2, 2, 3, 2, 2, 2, 3, 3, 3):
        graphed(torch.ones(rows, 4), None)
        seen.append((graphed.num_rows, recorder.pools))
    two, none = (2, 1), (0, 1)
    assert seen == [(0, 0), (0, 0), two, two, none, none, none, (2, 2), (0, 2), (0, 2), (3, 3)]


def test_gradients_are_refused_once_another_call_has_taken_their_place():
    module, recorder = _module(), _Recorder()
    graphed, x = _differentiable(module, new_capture=recorder), torch.ones(2, 4)
    outputs = [graphed(x, None) for _ in range(4)]
    assert recorder.captures == 2  # forward and backward
    outputs[0].sum().backward()  # uncaptured calls keep what is their own
    with pytest.raises(RuntimeError, match="before you evaluate anything else"):
        outputs[2].sum().backward()


@pytest.mark.gpu
def test_a_capture_that_runs_out_of_memory_says_so_and_a_smaller_one_succeeds_after_it():
    module, everything = _module().cuda(), torch.cuda.mem_get_info()[1]

    def function(x: Tensor) -> Tensor:
        if torch.cuda.is_current_stream_capturing() and len(x) > 4:
            torch.empty(2 * everything, dtype=torch.uint8, device="cuda")
        return module(x)

    graphed = GraphedGradients(function, module)
    for _ in range(2):
        graphed(torch.ones(5, 4, device="cuda")).sum().backward()
    with pytest.raises(torch.OutOfMemoryError):
        graphed(torch.ones(5, 4, device="cuda"))
    torch.randn(1, device="cuda")  # a capture that is not ended well spoils random numbers
    for _ in range(4):
        graphed(torch.ones(3, 4, device="cuda")).sum().backward()
    assert graphed.num_rows == 3


def test_a_capture_sees_weights_of_the_same_memory_that_no_earlier_loss_refers_to():
    module, recorder, seen = _module(), _Recorder(), []
    weights = dict(module.named_parameters())

    def function(x: Tensor) -> Tensor:
        seen.append(module.weight)
        return module(x)

    graphed = GraphedGradients(function, module, new_capture=recorder)
    for _ in range(3):
        graphed(torch.ones(2, 4))
    assert [weight is weights["weight"] for weight in seen[:4]] == [True, True, False, False]
    assert seen[3].data_ptr() == module.weight.data_ptr()
    assert all(weights[name] is parameter for name, parameter in module.named_parameters())


@pytest.mark.gpu
def test_losses_that_are_still_held_do_not_spoil_a_capture():
    module = _module().cuda()
    graphed, x = _differentiable(module), torch.ones(2, 4, device="cuda")
    losses = []
    for _ in range(4):
        module.zero_grad()
        losses.append(graphed(x, None).sum())
        losses[-1].backward()
    assert module.weight.grad is not None
    assert graphed.num_rows == 2


@pytest.mark.gpu
def test_cudas_graphs_of_gradients_see_new_inputs_and_new_weights():
    module, random = _module().cuda(), torch.Generator().manual_seed(0)
    graphed = _differentiable(module)
    for call in range(6):
        x = torch.randn(5, 4, generator=random).cuda()
        expected = _gradients(graphed._function, module, x)
        for name, tensor in _gradients(graphed, module, x).items():
            torch.testing.assert_close(tensor, expected[name], msg=f"{name}, call {call}")
        with torch.no_grad():
            module.weight.mul_(0.9)
