"""Quantising rows on a GPU, in one reading and one writing: a Triton kernel. `fp8.quantise_rows` says what it computes.

torch.compile would read each row twice and, where an adapter's halves go beside it, compute it anew for each number.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _quantise(
    x,
    factors,
    h,
    shift,
    values,
    scales,
    columns,
    width,
    rank,
    block: tl.constexpr,
    rank_block: tl.constexpr,
    padding_block: tl.constexpr,
    has_factors: tl.constexpr,
):
    """One row; blocks are powers of two that hold its columns, those of h, and the zeros at its end."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, block)
    inside = column < columns
    numbers = tl.load(x + row * columns + column, mask=inside, other=0.0).to(tl.float32)
    if has_factors:
        numbers *= tl.load(factors + column, mask=inside, other=0.0)
    largest = tl.max(tl.abs(numbers), axis=0)
    if rank_block:
        place = tl.arange(0, rank_block)
        adapted = place < rank
        reduced = tl.load(h + row * rank + place, mask=adapted, other=0.0).to(tl.float32) * tl.load(shift)
        largest = tl.maximum(largest, tl.max(tl.abs(reduced), axis=0))
    largest = tl.maximum(largest, 448.0 * 1.1754943508222875e-38)
    tl.store(scales + row, tl.div_rn(largest, 448.0))
    inverse = tl.div_rn(448.0, largest)
    target = values + row * width
    tl.store(target + column, (numbers * inverse).to(tl.float8e4nv), mask=inside)
    if rank_block:
        in_units = reduced * inverse
        first = in_units.to(tl.float8e4nv)
        second = (in_units - first.to(tl.float32)).to(tl.float8e4nv)
        tl.store(target + columns + place, first, mask=adapted)
        tl.store(target + columns + rank + place, second, mask=adapted)
        tl.store(target + columns + 2 * rank + place, first, mask=adapted)
    if padding_block:
        last = columns + 3 * rank + tl.arange(0, padding_block)
        tl.store(target + last, tl.zeros((padding_block,), tl.float32).to(tl.float8e4nv), mask=last < width)


def quantise_rows(
    x: Tensor, *, factors: Tensor | None = None, h: Tensor | None = None, shift: Tensor | None = None, width: int
) -> tuple[Tensor, Tensor]:
    """x (R, C) to e4m3 values (R, width) and scales (R, 1); see `fp8.quantise_rows`."""
    num_rows, columns = x.shape
    rank = 0 if h is None else h.shape[1]
    padding = width - columns - 3 * rank
    values = torch.empty(num_rows, width, dtype=torch.float8_e4m3fn, device=x.device)
    scales = torch.empty(num_rows, 1, dtype=torch.float32, device=x.device)
    with torch.cuda.device(x.device):
        _quantise[(num_rows,)](
            x.contiguous(),
            factors,
            None if h is None else h.contiguous(),
            shift,
            values,
            scales,
            columns,
            width,
            rank,
            block=triton.next_power_of_2(columns),
            rank_block=triton.next_power_of_2(rank) if rank else 0,
            padding_block=triton.next_power_of_2(padding) if padding else 0,
            has_factors=factors is not None,
            num_warps=16 if columns > 8192 else 8,
            enable_fp_fusion=False,  # a product and a difference in one rounding would not be the reference's
        )
    return values, scales
