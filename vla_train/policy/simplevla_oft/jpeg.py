"""What a JPEG round trip does to a batch of images, computed on their device: nothing is encoded, only quantised.

The steps are those of libjpeg-turbo with its defaults (4:2:0 chroma, triangle upsampling), which Pillow and TensorFlow use:
colour transform, chroma mean, 8 x 8 cosine transform, quantisation, and back, rounded where it rounds. Against Pillow nearly
all values are equal and the rest differ by one or two (see the test): its transforms work in integers, this one in float32.
"""

import math
from functools import lru_cache

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


def jpeg_round_trip(images: Tensor, quality: int = 95) -> Tensor:
    """Images as they come back from JPEG.

    Args:
        images: (B, H, W, 3) uint8.
        quality: libjpeg's, 1 to 100.

    Returns:
        (B, H, W, 3) float32, whole numbers from 0 to 255.
    """
    height, width = images.shape[1:3]
    rgb = images.permute(0, 3, 1, 2).float()
    rgb = F.pad(rgb, (0, -width % 16, 0, -height % 16), mode="replicate")
    red, green, blue = rgb.unbind(1)
    luma = _round(0.299 * red + 0.587 * green + 0.114 * blue)
    chroma = torch.stack(
        [
            -0.168735892 * red - 0.331264108 * green + 0.5 * blue,
            0.5 * red - 0.418687589 * green - 0.081312411 * blue,
        ],
        dim=1,
    )
    chroma = _halve(_round(chroma + 128 - 1e-5))
    luma = _quantise(luma, _table(_LUMINANCE, quality, images.device))
    blue_chroma, red_chroma = (_double(_quantise(chroma, _table(_CHROMINANCE, quality, images.device))) - 128).unbind(1)
    back = torch.stack(
        [
            luma + _round(1.402 * red_chroma),
            luma + _round(-0.344136286 * blue_chroma - 0.714136286 * red_chroma),
            luma + _round(1.772 * blue_chroma),
        ],
        dim=-1,
    )
    return back[:, :height, :width].clamp_(0, 255)


def _round(x: Tensor) -> Tensor:
    """Halves go up, as in integer code that adds a half and shifts."""
    return (x + 0.5).floor_()


def _halve(x: Tensor) -> Tensor:
    """(..., H, W) to (..., H/2, W/2): means of 2 x 2, halves rounded down and up in turn along a row."""
    sums = x.unflatten(-1, (-1, 2)).sum(-1).unflatten(-2, (-1, 2)).sum(-2)
    bias = torch.arange(sums.shape[-1], device=x.device) % 2 + 1
    return ((sums + bias) / 4).floor_()


def _double(x: Tensor) -> Tensor:
    """(..., H, W) to (..., 2H, 2W): triangle filter, 3/4 of the nearer and 1/4 of the further sample in each direction."""
    up = torch.cat([x[..., :1, :], x[..., :-1, :]], dim=-2)
    down = torch.cat([x[..., 1:, :], x[..., -1:, :]], dim=-2)
    rows = torch.stack([3 * x + up, 3 * x + down], dim=-2).flatten(-3, -2)
    left = torch.cat([rows[..., :1], rows[..., :-1]], dim=-1)
    right = torch.cat([rows[..., 1:], rows[..., -1:]], dim=-1)
    return (torch.stack([3 * rows + left + 8, 3 * rows + right + 7], dim=-1).flatten(-2) / 16).floor_()


def _quantise(x: Tensor, table: Tensor) -> Tensor:
    """Round the 8 x 8 cosine coefficients of (..., H, W) to multiples of `table` (8, 8)."""
    cosines = _cosines(x.device)
    blocks = (x - 128).unflatten(-1, (-1, 8)).unflatten(-3, (-1, 8)).transpose(-3, -2)
    coefficients = cosines @ blocks @ cosines.T / table
    coefficients = (coefficients.abs() + 0.5).floor_().copysign_(coefficients) * table
    blocks = _round(cosines.T @ coefficients @ cosines + 128).clamp_(0, 255)
    return blocks.transpose(-3, -2).flatten(-4, -3).flatten(-2)


@lru_cache(maxsize=8)
def _cosines(device: torch.device) -> Tensor:
    """The orthonormal 8-point cosine transform."""
    frequency, place = torch.meshgrid(torch.arange(8.0), torch.arange(8.0), indexing="ij")
    cosines = torch.cos((2 * place + 1) * frequency * math.pi / 16) / 2
    cosines[0] /= math.sqrt(2)
    return cosines.to(device)


@lru_cache(maxsize=8)
def _table(base: tuple[int, ...], quality: int, device: torch.device) -> Tensor:
    """Annex K's table at libjpeg's quality: (8, 8)."""
    scale = 5000 // quality if quality < 50 else 200 - 2 * quality
    table = (torch.tensor(base) * scale + 50) // 100
    return table.clamp(1, 255).reshape(8, 8).float().to(device)
