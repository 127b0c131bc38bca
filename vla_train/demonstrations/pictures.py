"""Pictures as the dataset stores them: PNG, which loses nothing, and a histogram of their pixels for the statistics."""

from dataclasses import dataclass
from io import BytesIO

import numpy as np
from PIL import Image, UnidentifiedImageError

_LEVEL = 3
"""zlib's: from 4 on, files of rendered scenes hardly shrink, and take several times as long."""
_SIDE = 160
"""Larger pictures enter the histogram with every second pixel, or fewer: as LeRobot does."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EncodedPictures:
    """The pictures of one camera over T steps."""

    shape: tuple[int, int, int]
    """(H, W, 3)."""
    files: tuple[bytes, ...]
    """T pictures as PNG."""
    histogram: np.ndarray
    """(3, 256) int64: how often each value occurs in each channel."""


def encode_pictures(frames: np.ndarray) -> EncodedPictures:
    """(T, H, W, 3) uint8 frames as PNG."""
    files = []
    for frame in frames:
        file = BytesIO()
        Image.fromarray(frame).save(file, "PNG", compress_level=_LEVEL)
        files.append(file.getvalue())
    stride = -(-max(frames.shape[1:3]) // _SIDE)
    channels = frames[:, ::stride, ::stride].reshape(-1, 3).T
    histogram = np.array([np.bincount(values, minlength=256) for values in channels], np.int64)
    return EncodedPictures(shape=frames.shape[1:], files=tuple(files), histogram=histogram)  # type: ignore[arg-type]


def decode_picture(file: bytes) -> np.ndarray:
    """(H, W, 3) uint8, from PNG or JPEG.

    Raises:
        ValueError: It is damaged, or has more than 8 bits a pixel and channel.
    """
    try:
        with Image.open(BytesIO(file)) as image:
            if image.mode[0] in "IF":  # to convert them would cut values off
                raise ValueError(f"a picture has the mode {image.mode}: pictures of 8 bits are read")
            return np.asarray(image.convert("RGB"))
    except (UnidentifiedImageError, OSError, SyntaxError) as error:
        raise ValueError(f"a picture is damaged ({error})") from None
