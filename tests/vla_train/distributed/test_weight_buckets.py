"""Tensors in a few large buffers."""

import pytest
import torch
from torch import Tensor

from vla_train.distributed.weight_buckets import BucketLayout, layout_from_json, layout_of
from vla_train.distributed.weights import pack_weights

DTYPES = [
    torch.float32,
    torch.bfloat16,
    torch.float16,
    torch.float64,
    torch.int64,
    torch.uint8,
    torch.bool,
    torch.float8_e4m3fn,
]


def packed(layout: BucketLayout, weights: dict[str, Tensor]) -> list[Tensor]:
    buckets = [torch.empty(size, dtype=torch.uint8) for size in layout.sizes]
    for index, bucket in enumerate(buckets):
        layout.pack(index, weights, bucket)
    return buckets


def same_bits(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    one, other = (pack_weights({name: w.view(torch.uint8) if w.dim() else w for name, w in x.items()}) for x in (first, second))
    return list(one) == list(other) and all(
        (one[name].content == other[name].content).all() and first[name].dtype == second[name].dtype for name in one
    )


@pytest.mark.parametrize("bucket_bytes", [1, 64, 1 << 20])
def test_tensors_of_all_dtypes_come_out_as_they_were(bucket_bytes: int) -> None:
    weights = {str(dtype): (100 * torch.randn(3, 5)).to(dtype) for dtype in DTYPES}
    weights |= {"scalar": torch.tensor(3.5), "empty": torch.zeros(0, 4), "nan": torch.tensor([float("nan"), -0.0])}
    layout = layout_of(weights, bucket_bytes=bucket_bytes)
    assert same_bits(layout.unpack(packed(layout, weights)), weights)


def test_strided_and_trainable_tensors_are_packed_too() -> None:
    weights = {"w": torch.nn.Parameter(torch.arange(12.0).reshape(3, 4)).t(), "part": torch.arange(10)[::3]}
    layout = layout_of(weights)
    arrived = layout.unpack(packed(layout, weights))
    assert torch.equal(arrived["w"], weights["w"].detach())
    assert torch.equal(arrived["part"], weights["part"])


def test_a_bucket_is_filled_before_the_next_and_a_large_tensor_has_its_own() -> None:
    weights = {"a": torch.zeros(10), "b": torch.zeros(2), "large": torch.zeros(100), "c": torch.zeros(1)}
    layout = layout_of(weights, bucket_bytes=64)
    assert [(place.bucket, place.first) for place in layout.places] == [(0, 0), (0, 48), (1, 0), (2, 0)]
    assert layout.sizes == (64, 400, 16)


def test_another_process_reads_the_same_layout() -> None:
    layout = layout_of({"a": torch.zeros(2, 3), "b": torch.zeros((), dtype=torch.bfloat16)}, bucket_bytes=16)
    assert layout_from_json(layout.to_json()) == layout


def test_no_weights_are_no_buckets() -> None:
    assert layout_of({}).sizes == ()
    assert layout_of({}).unpack([]) == {}
