"""How training images vary: a random crop in place of the policy's central one, small shifts, colours.

A crop of the policy's own area at a random place is the central crop of the image moved by up to half of what the crop leaves
out, (1 - sqrt(area)) / 2 of the side; so images are moved here, and the policy crops as it always does.

Colours change as in OpenVLA (brightness, contrast, saturation, hue, in this order), all four as one linear map of RGB: grey
is the luma, and hue turns around it. Values beyond 0..255 are clipped once.

Invariant: a function of the image and of numbers that depend on (seed, step, row) alone, on any number of ranks.
"""

import math

import numpy as np

from vla_train.sft.config import AugmentConfig

_STREAM = 11
"""Keeps these random numbers apart from others that are drawn from the run's seed."""
NUM_DRAWS = 6
"""Numbers that vary an image."""
_LUMA = np.array([0.299, 0.587, 0.114])
_TO_YIQ = np.array([_LUMA, [0.595716, -0.274453, -0.321263], [0.211456, -0.522591, 0.311135]])


def draws(seed: int, step: int, *, rows: int, images: int) -> np.ndarray:
    """(rows, images, NUM_DRAWS) float64 in [-1, 1) for the images of all rows of a training step."""
    return np.random.default_rng([seed, step, _STREAM]).uniform(-1, 1, (rows, images, NUM_DRAWS))


def reach(side: int, config: AugmentConfig, *, crop_area: float) -> float:
    """Most pixels by which an image of this side is moved, each way."""
    margin = (1 - math.sqrt(crop_area)) / 2 * (side - 1) if config.crop else 0.0
    return margin + config.shift * side


def augment_rows(images: np.ndarray, numbers: np.ndarray, config: AugmentConfig, *, crop_area: float) -> np.ndarray:
    """`augment` each of (R, H, W, 3) images by its (R, NUM_DRAWS) numbers; far faster where brightness is all that varies."""
    if not config.contrast == config.saturation == config.hue == 0:
        each = [augment(*one, config, crop_area=crop_area) for one in zip(images, numbers, strict=True)]
        return np.stack(each)
    sides = images.shape[2], images.shape[1]
    most = np.array([reach(side, config, crop_area=crop_area) for side in sides])
    varied = _move_rows(images, np.rint(numbers[:, :2] * most).astype(int))
    change = np.rint(255 * numbers[:, 2] * config.brightness).clip(-255, 255)[:, None, None, None]
    less, more = np.maximum(-change, 0).astype(np.uint8), np.maximum(change, 0).astype(np.uint8)
    np.maximum(varied, less, out=varied)  # so that nothing wraps around
    varied -= less
    np.minimum(varied, 255 - more, out=varied)
    varied += more
    return varied


def _move_rows(images: np.ndarray, by: np.ndarray) -> np.ndarray:
    """`move` each of (R, H, W, 3) images by its (R, 2) pixels to the right and down."""
    height, width = images.shape[1:3]
    margin = int(np.abs(by).max())
    padded = np.pad(images, ((0, 0), (margin, margin), (margin, margin), (0, 0)), "edge")
    moved = np.empty_like(images)
    for image, (right, down), to in zip(padded, margin - by, moved, strict=True):
        to[:] = image[down : down + height, right : right + width]
    return moved


def augment(image: np.ndarray, numbers: np.ndarray, config: AugmentConfig, *, crop_area: float) -> np.ndarray:
    """Vary one image.

    Args:
        image: (H, W, 3) uint8.
        numbers: (NUM_DRAWS,) in [-1, 1): right, down, brightness, contrast, saturation, hue.
        config: How much.
        crop_area: Share of the area that the policy looks at.
    """
    right, down = _shift(image, numbers, config, crop_area=crop_area)
    matrix, offset = colour_map(image, numbers[2:], config)
    moved = move(image, right=right, down=down).reshape(-1, 3).astype(np.float32)
    changed = moved @ matrix.T.astype(np.float32) + offset.astype(np.float32)
    return np.rint(changed).clip(0, 255).astype(np.uint8).reshape(image.shape)


def _shift(image: np.ndarray, numbers: np.ndarray, config: AugmentConfig, *, crop_area: float) -> tuple[int, int]:
    """Pixels to the right and down."""
    height, width = image.shape[:2]
    right, down = (
        round(float(number) * reach(side, config, crop_area=crop_area))
        for number, side in zip(numbers[:2], (width, height), strict=True)
    )
    return right, down


def move(image: np.ndarray, *, right: int, down: int) -> np.ndarray:
    """Move (H, W, 3) by whole pixels; what comes in from outside repeats the border."""
    height = len(image)
    moved = image.take(np.clip(np.arange(height) - down, 0, height - 1), 0)
    if right > 0:
        moved[:, right:], moved[:, :right] = moved[:, :-right].copy(), moved[:, :1].copy()
    elif right < 0:
        moved[:, :right], moved[:, right:] = moved[:, -right:].copy(), moved[:, -1:].copy()
    return moved


def colour_map(image: np.ndarray, numbers: np.ndarray, config: AugmentConfig) -> tuple[np.ndarray, np.ndarray]:
    """The linear map of colours: (3, 3) and (3,), for values in 0..255.

    Args:
        image: (H, W, 3); contrast spreads around its mean colour.
        numbers: (4,) in [-1, 1): brightness, contrast, saturation, hue.
        config: How much.
    """
    brightness, contrast, saturation, hue = (float(number) for number in numbers)
    factor = 1 + contrast * config.contrast
    mean = image.mean((0, 1), dtype=np.float64) + 255 * brightness * config.brightness
    offset = 255 * brightness * config.brightness * factor + (1 - factor) * mean
    vivid = 1 + saturation * config.saturation
    saturate = vivid * np.eye(3) + (1 - vivid) * np.outer(np.ones(3), _LUMA)
    angle = 2 * math.pi * hue * config.hue
    turn = np.array([[1, 0, 0], [0, math.cos(angle), -math.sin(angle)], [0, math.sin(angle), math.cos(angle)]])
    rotate = np.linalg.inv(_TO_YIQ) @ turn @ _TO_YIQ
    last = rotate @ saturate
    return factor * last, last @ offset
