"""Many tensors in a few large buffers, bit for bit: what a broadcast, and a copy on the host, are made of.

A buffer, or bucket, is bytes, so that one holds tensors of any dtype, and no backend need know that dtype.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

BUCKET_BYTES = 256 << 20
"""Most bytes of a bucket; a tensor that is larger has one of its own."""
_ALIGNMENT = 16
"""Bytes: no element is larger."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Place:
    """Where one tensor lies."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    bucket: int
    first: int
    """Byte within the bucket at which it begins."""

    @property
    def num_bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    def within(self, bucket: Tensor) -> Tensor:
        """The tensor, in the memory of its bucket, (bytes,) uint8."""
        return bucket[self.first : self.first + self.num_bytes].view(self.dtype).view(self.shape)


@dataclass(frozen=True, kw_only=True, slots=True)
class BucketLayout:
    """Which tensors lie where."""

    places: tuple[Place, ...]
    sizes: tuple[int, ...]
    """Bytes of each bucket, never 0."""

    def pack(self, bucket: int, weights: Mapping[str, Tensor], into: Tensor) -> None:
        """Copy the tensors of one bucket into its memory; from a GPU into pinned memory, the host does not wait."""
        for place in self.places:
            if place.bucket == bucket:
                place.within(into).copy_(weights[place.name].detach(), non_blocking=True)

    def unpack(self, buckets: list[Tensor]) -> dict[str, Tensor]:
        """All tensors by name, in the memory of their buckets."""
        return {place.name: place.within(buckets[place.bucket]) for place in self.places}

    def to_json(self) -> str:
        """For `layout_from_json`, in another process."""
        return json.dumps([(place.name, str(place.dtype), place.shape, place.bucket, place.first) for place in self.places])


def layout_of(weights: Mapping[str, Tensor], *, bucket_bytes: int = BUCKET_BYTES) -> BucketLayout:
    """Put tensors into buckets in their order.

    Args:
        weights: Tensors of any dtype and shape.
        bucket_bytes: Most bytes of a bucket.
    """
    places: list[Place] = []
    bucket = end = 0
    for name, weight in weights.items():
        place = Place(name=name, dtype=weight.dtype, shape=tuple(weight.shape), bucket=bucket, first=end)
        if end > 0 and end + place.num_bytes > bucket_bytes:
            bucket, end = bucket + 1, 0
            place = Place(name=name, dtype=weight.dtype, shape=tuple(weight.shape), bucket=bucket, first=end)
        places.append(place)
        end += _aligned(place.num_bytes)
    return _layout(places)


def layout_from_json(text: str) -> BucketLayout:
    """What `BucketLayout.to_json` wrote."""
    return _layout(
        [
            Place(
                name=name,
                dtype=getattr(torch, dtype.removeprefix("torch.")),
                shape=tuple(shape),
                bucket=bucket,
                first=first,
            )
            for name, dtype, shape, bucket, first in json.loads(text)
        ]
    )


def _layout(places: list[Place]) -> BucketLayout:
    sizes: dict[int, int] = {}
    for place in places:
        sizes[place.bucket] = max(_ALIGNMENT, place.first + _aligned(place.num_bytes))
    return BucketLayout(places=tuple(places), sizes=tuple(sizes.values()))


def _aligned(num_bytes: int) -> int:
    return -(-num_bytes // _ALIGNMENT) * _ALIGNMENT
