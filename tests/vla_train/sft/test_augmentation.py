"""Augmentation: the crop has the area that the policy looks at, colours change as they should, and draws are repeatable."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from reach_demonstrations import UNVARIED

from vla_train.policy.simplevla_oft.images import CROP_AREA, center_crop
from vla_train.sft.augmentation import NUM_DRAWS, augment, augment_rows, colour_map, draws, move, reach
from vla_train.sft.config import AugmentConfig

CROP_ALONE = replace(UNVARIED, crop=True)


def noise(side: int = 64) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8)


def test_images_move_by_at_most_half_of_what_a_crop_of_nine_tenths_of_the_area_leaves_out() -> None:
    side = 224
    left_out = (side - 1) * (1 - math.sqrt(0.9))  # the crop's side is the square root of its area, not nine tenths
    assert reach(side, CROP_ALONE, crop_area=CROP_AREA) == pytest.approx(left_out / 2)
    assert reach(side, CROP_ALONE, crop_area=CROP_AREA) == pytest.approx(5.72, abs=0.01)
    assert reach(side, replace(CROP_ALONE, shift=0.02), crop_area=CROP_AREA) == pytest.approx(left_out / 2 + 4.48)
    assert reach(side, UNVARIED, crop_area=CROP_AREA) == reach(side, CROP_ALONE, crop_area=1.0) == 0


@pytest.mark.parametrize(("right", "down"), [(2, 0), (-2, 1), (0, -2)])
def test_the_central_crop_of_a_moved_image_is_the_crop_at_another_place(right: int, down: int) -> None:
    side = 84
    image = noise(side)
    assert max(abs(right), abs(down)) <= reach(side, CROP_ALONE, crop_area=CROP_AREA)

    def crop(pixels: np.ndarray, x: float, y: float) -> np.ndarray:
        """Bilinear samples of a window of sqrt(0.9) of the side, whose centre lies (x, y) off the image's."""
        width = math.sqrt(CROP_AREA)
        start = (1 - width) / 2 * (side - 1)
        rows = start + y + np.arange(side) * width
        columns = start + x + np.arange(side) * width
        weigh = [np.maximum(0, 1 - np.abs(place[:, None] - np.arange(side))) for place in (rows, columns)]
        assert all(np.allclose(weights.sum(1), 1) for weights in weigh), "the window lies inside the image"
        return np.einsum("ij,jkc,lk->ilc", weigh[0], pixels.astype(np.float64), weigh[1])

    moved = torch.from_numpy(move(image, right=right, down=down)).permute(2, 0, 1).float()
    ours = center_crop(moved).permute(1, 2, 0).numpy()
    assert np.abs(ours - crop(image, -right, -down)).max() < 1.01  # rounded


def test_what_comes_in_from_outside_repeats_the_border() -> None:
    image = noise(8)
    moved = move(image, right=2, down=-1)
    np.testing.assert_array_equal(moved[:-1, 2:], image[1:, :-2])
    np.testing.assert_array_equal(moved[:-1, 0], image[1:, 0])
    np.testing.assert_array_equal(moved[-1, 2:], image[-1, :-2])


def test_nothing_changes_where_nothing_is_asked_for() -> None:
    image = noise()
    numbers = draws(0, 0, rows=1, images=1)[0, 0]
    np.testing.assert_array_equal(augment(image, numbers, UNVARIED, crop_area=CROP_AREA), image)


@pytest.mark.parametrize("colours", [{"brightness": 0.15}, {"brightness": 0.15, "contrast": 0.2, "hue": 0.1}], ids=str)
def test_rows_are_varied_together_as_each_is_by_itself(colours: dict[str, float]) -> None:
    config = replace(UNVARIED, crop=True, shift=0.1, **colours)
    images = np.random.default_rng(1).integers(0, 256, (12, 32, 32, 3), dtype=np.uint8)
    numbers = draws(0, 3, rows=12, images=1)[:, 0]
    assert numbers[:, :2].min() < -0.5 < 0.5 < numbers[:, :2].max(), "all ways"
    together = augment_rows(images, numbers, config, crop_area=CROP_AREA)
    for image, own, row in zip(images, numbers, together, strict=True):
        np.testing.assert_array_equal(row, augment(image, own, config, crop_area=CROP_AREA))


def test_brightness_adds_contrast_spreads_saturation_leaves_grey_and_hue_turns_around_it() -> None:
    image = noise().astype(np.float64)
    config = replace(UNVARIED, brightness=0.2, contrast=0.5, saturation=0.5, hue=0.25)

    def changed(pixels: np.ndarray, *numbers: float) -> np.ndarray:
        matrix, offset = colour_map(pixels, np.array(numbers), config)
        return pixels @ matrix.T + offset

    np.testing.assert_allclose(changed(image, 1, 0, 0, 0), image + 51)
    spread = changed(image, 0, -1, 0, 0)
    np.testing.assert_allclose(spread.mean((0, 1)), image.mean((0, 1)))
    np.testing.assert_allclose(spread.std((0, 1)), image.std((0, 1)) / 2)
    grey = np.repeat(image[..., :1], 3, axis=-1)
    np.testing.assert_allclose(changed(grey, 0, 0, 1, 1), grey, atol=1e-3)
    luma = np.array([0.299, 0.587, 0.114])
    np.testing.assert_allclose(changed(image, 0, 0, -1, 1) @ luma, image @ luma, atol=0.1)
    both = changed(image, 1, 1, 0, 0)
    np.testing.assert_allclose(both, (image + 51 - (image + 51).mean((0, 1))) * 1.5 + (image + 51).mean((0, 1)))


def test_draws_depend_on_seed_step_and_row_alone() -> None:
    numbers = draws(1, 2, rows=3, images=2)
    assert numbers.shape == (3, 2, NUM_DRAWS)
    np.testing.assert_array_equal(numbers, draws(1, 2, rows=3, images=2))
    np.testing.assert_array_equal(numbers, draws(1, 2, rows=5, images=2)[:3])
    for other in (draws(0, 2, rows=3, images=2), draws(1, 3, rows=3, images=2), numbers[::-1], numbers[:, ::-1]):
        assert not np.array_equal(numbers, other)


@pytest.mark.parametrize("changes", [{"shift": 1.0}, {"hue": -0.1}, {"contrast": float("nan")}])
def test_amounts_that_make_no_sense_are_refused(changes: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=rf"augment\.{next(iter(changes))}"):
        AugmentConfig(**changes)
