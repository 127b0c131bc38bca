"""FP8 against slow references: rounding value by value, products in float32, adapters in bfloat16."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from vla_train.policy.simplevla_oft import fp8
from vla_train.policy.simplevla_oft.fp8 import product_reference, quantise_rows, scaled_product

_DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


def _nearest_e4m3(x: np.ndarray) -> np.ndarray:
    """Four significant bits, exponents from -6; halves to even."""
    exponents = np.floor(np.log2(np.maximum(np.abs(x), 2.0**-6)))
    step = 2.0 ** (exponents - 3)
    return np.round(x / step) * step


@given(hnp.arrays(np.float32, (3, 8), elements=st.floats(-1e4, 1e4, width=32)))
def test_each_row_is_scaled_to_the_full_range_and_rounded_to_the_nearest_value(x):
    values, scales = quantise_rows(torch.from_numpy(x))
    assert values.dtype == torch.float8_e4m3fn
    assert scales.shape == (3, 1)
    for row, quantised, scale in zip(x, values.float().numpy(), scales[:, 0].numpy(), strict=True):
        largest = np.abs(row).max()
        if largest > 1e-30:
            assert np.array_equal(quantised, _nearest_e4m3(row * (np.float32(448) / largest)))
            assert np.abs(quantised).max() == 448
            assert scale == largest / np.float32(448)


def test_rows_of_zeros_stay_zeros_and_nan_stays_nan():
    values, scales = quantise_rows(torch.tensor([[0.0, 0.0], [1.0, float("nan")]]))
    dequantised = values.float() * scales
    assert (dequantised[0] == 0).all()
    assert dequantised[1].isnan().all()


@pytest.mark.gpu
@pytest.mark.parametrize(("columns", "rank"), [(192, 0), (192, 4), (4096, 32), (11008, 32), (22016, 0)])
def test_the_kernel_gives_the_very_values_of_the_reference(columns, rank):
    generator = torch.Generator().manual_seed(0)
    x = (torch.randn(70, columns, generator=generator) * torch.logspace(-6, 6, 70)[:, None]).bfloat16()
    h = torch.randn(70, rank, generator=generator).bfloat16() if rank else None
    factors = None if rank else torch.rand(columns, generator=generator) + 0.1
    width, shift = columns + -(-3 * rank // 128) * 128, torch.tensor(4.0)
    expected = quantise_rows(x, factors=factors, h=h, shift=shift, width=width)
    given = (None if tensor is None else tensor.cuda() for tensor in (factors, h, shift))
    values = quantise_rows(x.cuda(), **dict(zip(("factors", "h", "shift"), given, strict=True)), width=width)
    for result, reference in zip(values, expected, strict=True):
        assert torch.equal(result.cpu().float(), reference.float())


@pytest.mark.parametrize("device", _DEVICES)
@pytest.mark.parametrize("shape", [(1, 32, 48), (7, 512, 192), (130, 192, 576)], ids=str)
def test_the_scaled_product_is_the_slow_ones_rounded_to_bfloat16(device, shape):
    rows, width, out = shape
    generator = torch.Generator().manual_seed(0)
    x = (torch.randn(rows, width, generator=generator) * torch.logspace(-3, 3, rows)[:, None]).bfloat16()
    weight = torch.randn(out, width, generator=generator) * torch.logspace(-2, 2, out)[:, None]
    quantised = [tensor for pair in (quantise_rows(x), quantise_rows(weight)) for tensor in pair]
    result = scaled_product(*(tensor.to(device) for tensor in quantised)).cpu()
    assert result.dtype == torch.bfloat16
    expected = product_reference(x, weight)
    norms = x.float().norm(dim=1)[:, None] * weight.norm(dim=1)
    # Rounding to bfloat16, and on a GPU sums kept to about 14 bits.
    assert ((result.float() - expected).abs() <= expected.abs() * 2**-8 + norms * (1e-6 if device == "cpu" else 1e-3)).all()


@pytest.mark.parametrize("magnitude", [1e-6, 1e-5, 1e-3, 1e-1, 1e3])
def test_an_adapters_product_inside_the_base_has_the_precision_of_bfloat16(magnitude):
    generator = torch.Generator().manual_seed(0)
    weight = 0.02 * torch.randn(96, 64, generator=generator)
    h, b = torch.randn(50, 8, generator=generator), magnitude * torch.randn(96, 8, generator=generator)
    values, scales, shift = fp8.quantise(weight, rank=8)
    fp8.take_adapter(b, 0.5, values, scales, shift, in_features=64)
    x = torch.zeros(50, 64)
    x[:, 0] = 100  # as far above the rest as a large model's outliers are
    quantised, row_scales = (tensor.double() for tensor in quantise_rows(x, h=h, shift=shift, width=values.shape[1]))
    part = quantised[:, 64:] @ values[:, 64:].double().T * row_scales * scales.T.double()
    exact = 0.5 * h.double() @ b.T.double()
    assert (part - exact).norm() < 0.01 * exact.norm()


def test_an_adapter_beyond_the_range_of_its_rows_is_shifted_and_not_lost():
    weight = torch.full((16, 16), 1e-6)
    values, scales, shift = fp8.quantise(weight, rank=2)
    b = torch.randn(16, 2, generator=torch.Generator().manual_seed(0))
    fp8.take_adapter(b, 1.0, values, scales, shift, in_features=16)
    assert shift > 1
    h = torch.randn(5, 2, generator=torch.Generator().manual_seed(1))
    quantised, row_scales = quantise_rows(torch.zeros(5, 16), h=h, shift=shift, width=values.shape[1])
    result = quantised.float() @ values.float().T * row_scales * scales.T
    torch.testing.assert_close(result, h @ b.T, rtol=0.02, atol=0.01)


def test_a_width_that_the_matrix_units_do_not_take_is_refused():
    with pytest.raises(ValueError, match="multiples of 16, got 24 to 32"):
        fp8.quantise(torch.zeros(32, 24), rank=0)
