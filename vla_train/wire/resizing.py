"""Images of the size that a server wants, as openpi's clients make them."""

import numpy as np


def resized(image: np.ndarray, size: int) -> np.ndarray:
    """(size, size, 3) of an image (H, W, 3), its sides' ratio kept the rest black: openpi's `resize_with_pad`; 0: itself."""
    height, width = image.shape[:2]
    if size == 0 or (height, width) == (size, size):
        return image
    from PIL import Image

    ratio = max(height, width) / size
    shrunk = Image.fromarray(image).resize((int(width / ratio), int(height / ratio)), Image.Resampling.BILINEAR)
    padded = np.zeros((size, size, 3), np.uint8)
    top, left = (size - shrunk.height) // 2, (size - shrunk.width) // 2
    padded[top : top + shrunk.height, left : left + shrunk.width] = np.asarray(shrunk)
    return padded
