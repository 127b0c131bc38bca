"""From the env's uint8 frames to the model's input, batched, on the device the frames are on.

    openvla:  [JPEG round trip] -> Lanczos resize -> centre crop of 90 % of the area, resized back -> each tower's normalisation
    rlinf:                         bicubic resize ------------------------------------------------> each tower's normalisation

OpenVLA's is how the published checkpoints were taught and evaluated, RLinf's how RLinf trains and evaluates them. Resampling is
linear and separable: one matrix for the rows, one for the columns. Each step rounds to whole numbers, as the 8-bit images of
the reference do.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vla_train.policy.simplevla_oft.config import ImagePath
from vla_train.policy.simplevla_oft.jpeg import jpeg_round_trip

CROP_AREA = 0.9
"""Share of the image's area that the centre crop keeps; its side is the square root of that."""
_DINOV2 = ((0.484375, 0.455078125, 0.40625), (0.228515625, 0.2236328125, 0.224609375))
_SIGLIP = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


@dataclass(frozen=True, kw_only=True)
class ImageSettings:
    """How frames become `pixel_values`."""

    image_size: int
    """Side of the model's input in pixels."""
    means: tuple[tuple[float, ...], tuple[float, ...]] = (_DINOV2[0], _SIGLIP[0])
    """Per tower and colour, of values in [0, 1]."""
    stds: tuple[tuple[float, ...], tuple[float, ...]] = (_DINOV2[1], _SIGLIP[1])
    """Per tower and colour."""
    jpeg: bool = False
    """Whether frames take a JPEG round trip at quality 95 first."""
    path: ImagePath = "openvla"

    def __post_init__(self) -> None:
        assert not (self.jpeg and self.path == "rlinf")

    @property
    def crop_area(self) -> float:
        """Share of the frame's area that the model sees."""
        return CROP_AREA if self.path == "openvla" else 1.0


def settings_from_json(data: Mapping[str, Any], *, image_size: int, jpeg: bool, path: ImagePath = "openvla") -> ImageSettings:
    """Settings from a checkpoint's `preprocessor_config.json`, which wins over the defaults where it says something.

    Raises:
        ValueError: It prepares images for another model.
    """
    sizes = data.get("input_sizes", [[3, image_size, image_size]] * 2)
    if [list(size) for size in sizes] != [[3, image_size, image_size]] * 2:
        raise ValueError(f"preprocessor_config.json: input_sizes {sizes} do not fit a model with {image_size} px input")
    statistics = {}
    for name, default in (("means", ImageSettings.means), ("stds", ImageSettings.stds)):
        values = data.get(name, default)
        if np.shape(values) != (2, 3) or not np.isfinite(values).all() or (name == "stds" and np.min(values) <= 0):
            raise ValueError(f"preprocessor_config.json: {name} must hold three numbers for each of two towers, got {values}")
        statistics[name] = tuple(tuple(float(value) for value in tower) for tower in values)
    return ImageSettings(
        image_size=image_size,
        jpeg=jpeg,
        path=path,
        means=statistics["means"],  # type: ignore[arg-type]
        stds=statistics["stds"],  # type: ignore[arg-type]
    )


def settings_to_json(settings: ImageSettings) -> dict[str, Any]:
    """A `preprocessor_config.json` as the published checkpoints have it."""
    size = settings.image_size
    return {
        "image_processor_type": "PrismaticImageProcessor",
        "image_resize_strategy": "resize-naive",
        "input_sizes": [[3, size, size]] * 2,
        "interpolations": ["bicubic", "bicubic"],
        "means": [list(mean) for mean in settings.means],
        "stds": [list(std) for std in settings.stds],
        "tvf_crop_params": [{"output_size": [size, size]}] * 2,
        "tvf_do_letterbox": False,
        "tvf_letterbox_fill": None,
        "tvf_normalize_params": [
            {"inplace": False, "mean": list(mean), "std": list(std)}
            for mean, std in zip(settings.means, settings.stds, strict=True)
        ],
        "tvf_resize_params": [{"antialias": True, "interpolation": 3, "max_size": None, "size": [size, size]}] * 2,
        "use_fused_vision_backbone": True,
    }


def preprocess(images: Tensor, settings: ImageSettings) -> Tensor:
    """(B, H, W, 3) uint8 to `pixel_values` (B, 6, image_size, image_size) float32."""
    if images.ndim != 4 or images.shape[3] != 3 or images.dtype != torch.uint8:
        raise ValueError(f"images must be (B, H, W, 3) uint8, got {tuple(images.shape)} {images.dtype}")
    values = (jpeg_round_trip(images) if settings.jpeg else images).permute(0, 3, 1, 2).float()
    if settings.path == "openvla":
        values = center_crop(lanczos_resize(values, settings.image_size))
    else:
        values = bicubic_resize(values, settings.image_size)
    scale, shift = _normalisation(settings, images.device)
    return torch.cat([values, values], dim=1).mul_(scale).add_(shift)


def lanczos_resize(values: Tensor, size: int) -> Tensor:
    """Resize (..., H, W) with values 0..255 to (..., size, size): Lanczos over 3 lobes, widened where it shrinks, rounded once.

    The weights are Pillow's (and TensorFlow's with antialias). Pillow also rounds and clips between the two directions: a
    fifth of the values differ from its by one, and by more only where the image in between overshoots 0..255 (a few in a
    million of a rendered frame, two in a hundred of noise).
    """
    return _resize(values, size, _lanczos, 3)


def bicubic_resize(values: Tensor, size: int) -> Tensor:
    """The same with a cubic (a = -0.5) over 2 samples to either side; it differs from Pillow's as little."""
    return _resize(values, size, _cubic, 2)


def _resize(values: Tensor, size: int, kernel: Callable[[np.ndarray], np.ndarray], reach: int) -> Tensor:
    height, width = values.shape[-2:]
    if (height, width) == (size, size):
        return values
    rows, columns = (_resampling(old, size, kernel, reach, values.device) for old in (height, width))
    return (rows @ (values @ columns.T)).round_().clamp_(0, 255)


def center_crop(values: Tensor) -> Tensor:
    """Keep the central `CROP_AREA` of (..., S, S) with values 0..255 and resize it back, bilinear: TensorFlow's
    `crop_and_resize`, whose first and last samples lie on the crop's edges, and its conversion to 8 bits, which multiplies
    by 255.5 and truncates."""
    matrix = _crop(values.shape[-1], values.device)
    return ((matrix @ (values @ matrix.T)) * (255.5 / 255)).floor_().clamp_(0, 255)


def _lanczos(x: np.ndarray) -> np.ndarray:
    return np.sinc(x) * np.sinc(x / 3)


def _cubic(x: np.ndarray) -> np.ndarray:
    x = np.abs(x)
    return np.where(x < 1, (1.5 * x - 2.5) * x * x + 1, ((-0.5 * x + 2.5) * x - 4) * x + 2)


@cache
def _resampling(old: int, new: int, kernel: Callable[[np.ndarray], np.ndarray], reach: int, device: torch.device) -> Tensor:
    """(new, old): row i holds the weights of the input samples in output sample i; the kernel is 0 from `reach` on."""
    scale = old / new
    stretch = max(scale, 1.0)
    center = (np.arange(new) + 0.5) * scale
    first = np.maximum((center - reach * stretch + 0.5).astype(int), 0)
    last = np.minimum((center + reach * stretch + 0.5).astype(int), old)
    sample = np.arange(old)
    x = (sample + 0.5 - center[:, None]) / stretch
    weights = np.where(np.abs(x) < reach, kernel(x), 0.0)
    weights *= (sample >= first[:, None]) & (sample < last[:, None])
    return torch.from_numpy((weights / weights.sum(1, keepdims=True)).astype(np.float32)).to(device)


@cache
def _crop(size: int, device: torch.device) -> Tensor:
    """(size, size): bilinear samples at equal distances from the first to the last pixel of the crop."""
    side = CROP_AREA**0.5
    start = (1 - side) / 2 * (size - 1)
    position = start + np.arange(size) * side
    sample = np.arange(size)
    weights = np.maximum(0.0, 1 - np.abs(position[:, None] - sample))
    return torch.from_numpy(weights.astype(np.float32)).to(device)


@cache
def _normalisation(settings: ImageSettings, device: torch.device) -> tuple[Tensor, Tensor]:
    """Factor and offset (6, 1, 1) that map 0..255 to normalised values."""
    mean = torch.tensor(settings.means, dtype=torch.float64).reshape(6, 1, 1)
    std = torch.tensor(settings.stds, dtype=torch.float64).reshape(6, 1, 1)
    return (1 / (255 * std)).float().to(device), (-mean / std).float().to(device)
