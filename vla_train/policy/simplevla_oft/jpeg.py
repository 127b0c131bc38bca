"""What a JPEG round trip does to a batch of images, computed on their device: nothing is encoded, only quantised.

The steps are those of libjpeg-turbo with its defaults (4:2:0 chroma, accurate integer transforms, triangle upsampling), which
Pillow and TensorFlow use, with its integer constants and its roundings: the result is Pillow's, value for value. An integer
transform is a matrix product that is rounded once, so float64 computes it exactly.
"""

from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

# fmt: off
_LUMINANCE = (
    16, 11, 10, 16, 24, 40, 51, 61,  12, 12, 14, 19, 26, 58, 60, 55,  14, 13, 16, 24, 40, 57, 69, 56,
    14, 17, 22, 29, 51, 87, 80, 62,  18, 22, 37, 56, 68, 109, 103, 77,  24, 35, 55, 64, 81, 104, 113, 92,
    49, 64, 78, 87, 103, 121, 120, 101,  72, 92, 95, 98, 112, 100, 103, 99,
)
_CHROMINANCE = (
    17, 18, 24, 47, 99, 99, 99, 99,  18, 21, 26, 66, 99, 99, 99, 99,  24, 26, 56, 99, 99, 99, 99, 99,
    47, 66, 99, 99, 99, 99, 99, 99,  99, 99, 99, 99, 99, 99, 99, 99,  99, 99, 99, 99, 99, 99, 99, 99,
    99, 99, 99, 99, 99, 99, 99, 99,  99, 99, 99, 99, 99, 99, 99, 99,
)
# fmt: on


# One pass of the integer cosine transform: 8 x 8, times 2**13, from the constants of the algorithm by Loeffler, Ligtenberg
# and Moschytz that libjpeg calls "islow". Row k holds the weights of the eight samples in coefficient k.
_BITS = 13
_EVEN = ((8192, 8192, 8192, 8192), (10703, 4433, -4433, -10703), (8192, -8192, -8192, 8192), (4433, -10704, 10704, -4433))
"""Coefficients 0, 2, 4, 6 over samples 0 to 3 (4 to 7 mirror them)."""
_ODD = ((11363, 9633, 6437, 2260), (9633, -2259, -11362, -6436), (6437, -11362, 2261, 9633), (2260, -6436, 9633, -11363))
"""Coefficients 1, 3, 5, 7 over samples 0 to 3 (4 to 7 mirror them with the sign turned)."""


def jpeg_round_trip(images: Tensor, quality: int = 95) -> Tensor:
    """Images as they come back from JPEG.

    Args:
        images: (B, H, W, 3) uint8.
        quality: libjpeg's, 1 to 100.

    Returns:
        (B, H, W, 3) uint8.
    """
    height, width = images.shape[1:3]
    rgb = F.pad(images.permute(0, 3, 1, 2).float(), (0, -width % 16, 0, height % 2), mode="replicate")
    red, green, blue = rgb.int().unbind(1)
    luma = (19595 * red + 38470 * green + 7471 * blue + 32768) >> 16
    center = (128 << 16) + 32767
    chroma = torch.stack(
        [
            (-11059 * red - 21709 * green + 32768 * blue + center) >> 16,
            (32768 * red - 27439 * green - 5329 * blue + center) >> 16,
        ],
        dim=1,
    )
    luma = _quantise(luma, _table(_LUMINANCE, quality, images.device))
    chroma = _quantise(_halve(chroma), _table(_CHROMINANCE, quality, images.device))[..., : (width + 1) // 2]
    blue_chroma, red_chroma = (_double(chroma) - 128)[..., :height, :width].unbind(1)
    luma = luma[:, :height, :width]
    back = torch.stack(
        [
            luma + ((91881 * red_chroma + 32768) >> 16),
            luma + ((-22554 * blue_chroma - 46802 * red_chroma + 32768) >> 16),
            luma + ((116130 * blue_chroma + 32768) >> 16),
        ],
        dim=-1,
    )
    return back.clamp_(0, 255).to(torch.uint8)


def _halve(x: Tensor) -> Tensor:
    """(..., H, W) to (..., H/2, W/2): means of 2 x 2, rounded down and up in turn along a row."""
    sums = x.unflatten(-1, (-1, 2)).sum(-1, dtype=torch.int32).unflatten(-2, (-1, 2)).sum(-2, dtype=torch.int32)
    return (sums + torch.arange(sums.shape[-1], device=x.device, dtype=torch.int32) % 2 + 1) >> 2


def _double(x: Tensor) -> Tensor:
    """(..., H, W) to (..., 2H, 2W): triangle filter, 3/4 of the nearer and 1/4 of the further sample in each direction."""
    up = torch.cat([x[..., :1, :], x[..., :-1, :]], dim=-2)
    down = torch.cat([x[..., 1:, :], x[..., -1:, :]], dim=-2)
    rows = torch.stack([3 * x + up, 3 * x + down], dim=-2).flatten(-3, -2)
    left = torch.cat([rows[..., :1], rows[..., :-1]], dim=-1)
    right = torch.cat([rows[..., 1:], rows[..., -1:]], dim=-1)
    return torch.stack([(3 * rows + left + 8) >> 4, (3 * rows + right + 7) >> 4], dim=-1).flatten(-2)


def _quantise(x: Tensor, table: Tensor) -> Tensor:
    """Round the cosine coefficients of each 8 x 8 block of (..., H, W) int to multiples of `table` (8, 8)."""
    cosines = _cosines(x.device)
    height = x.shape[-2]
    padded = F.pad((x - 128).double(), (0, 0, 0, -height % 8), mode="replicate")
    blocks = padded.unflatten(-1, (-1, 8)).unflatten(-3, (-1, 8)).transpose(-3, -2)
    rows = _shift(blocks @ cosines.T, _BITS - 2)
    coefficients = _shift(rows.mT @ cosines.T, _BITS + 2).mT
    steps = 8 * table
    levels = ((coefficients.abs() + steps // 2) / steps).floor_().copysign_(coefficients)
    columns = _shift((levels * table).mT @ cosines, _BITS - 2).mT
    blocks = (_shift(columns @ cosines, _BITS + 5) + 128).clamp_(0, 255)
    return blocks.transpose(-3, -2).flatten(-4, -3).flatten(-2)[..., :height, :].int()


def _shift(x: Tensor, bits: int) -> Tensor:
    """Divide whole numbers by 2**bits and round, halves up."""
    return x.add_(1 << (bits - 1)).mul_(0.5**bits).floor_()


@cache
def _cosines(device: torch.device) -> Tensor:
    """(8, 8) float64: coefficients from samples; the transposed matrix goes back."""
    even = torch.tensor(_EVEN, dtype=torch.float64)
    odd = torch.tensor(_ODD, dtype=torch.float64)
    cosines = torch.stack([torch.cat([even, even.flip(1)], dim=1), torch.cat([odd, -odd.flip(1)], dim=1)], dim=1)
    return cosines.flatten(0, 1).to(device)


@cache
def _table(base: tuple[int, ...], quality: int, device: torch.device) -> Tensor:
    """Annex K's table at libjpeg's quality: (8, 8) float64."""
    scale = 5000 // quality if quality < 50 else 200 - 2 * quality
    table = (torch.tensor(base) * scale + 50) // 100
    return table.clamp(1, 255).reshape(8, 8).double().to(device)
