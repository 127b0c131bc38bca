"""Against Pillow, and against loops in NumPy. Frames here have gradients, edges and noise, as rendered scenes do."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from vla_train.policy.simplevla_oft.images import (
    CROP_AREA,
    ImageSettings,
    bicubic_resize,
    center_crop,
    lanczos_resize,
    preprocess,
    settings_from_json,
    settings_to_json,
)
from vla_train.policy.simplevla_oft.jpeg import jpeg_round_trip


def _frames(height: int, width: int, num_frames: int = 3) -> np.ndarray:
    generator = np.random.default_rng(0)
    y, x = np.mgrid[:height, :width]
    frames = np.empty((num_frames, height, width, 3), np.uint8)
    for number in range(num_frames):
        wave = np.stack([np.sin(x / (9 + 5 * number + colour) + y / (17 + colour)) for colour in range(3)], axis=-1)
        frame = 127 + 100 * wave + generator.normal(0, 3, wave.shape)
        frame[height // 4 : height // 2, width // 3 : width // 2] = generator.integers(0, 256, 3)
        frames[number] = frame.clip(0, 255)
    return frames


def _channels_first(frames: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(frames).permute(0, 3, 1, 2).float()


def _tensorflow_crop(image: np.ndarray, area: float) -> np.ndarray:
    """`crop_and_resize` of the centre, sample by sample, and TensorFlow's conversions between 8 bits and float."""
    size, side = len(image), area**0.5
    low, high = (1 - side) / 2, (1 + side) / 2
    positions = [low * (size - 1) + i * (high - low) * (size - 1) / (size - 1) for i in range(size)]
    pixels = image.astype(np.float64) / 255
    out = np.empty(image.shape)
    for i, y in enumerate(positions):
        for j, x in enumerate(positions):
            top, left = int(y), int(x)
            bottom, right = min(top + 1, size - 1), min(left + 1, size - 1)
            upper = pixels[top, left] + (pixels[top, right] - pixels[top, left]) * (x - left)
            lower = pixels[bottom, left] + (pixels[bottom, right] - pixels[bottom, left]) * (x - left)
            out[i, j] = upper + (lower - upper) * (y - top)
    return np.floor(out.clip(0, 1) * 255.5).clip(0, 255)


@pytest.mark.parametrize("shape", [(256, 256), (128, 128), (100, 142), (37, 51)])
@pytest.mark.parametrize("quality", [95, 40])
def test_the_jpeg_round_trip_is_pillows_value_for_value(shape, quality):
    frames = _frames(*shape)
    expected = []
    for frame in frames:
        file = io.BytesIO()
        Image.fromarray(frame).save(file, "JPEG", quality=quality)
        expected.append(np.asarray(Image.open(file)))
    assert np.array_equal(jpeg_round_trip(torch.from_numpy(frames), quality).numpy(), np.stack(expected))


@pytest.mark.parametrize("size", [224, 84, 300])
@pytest.mark.parametrize("shape", [(256, 256), (240, 320)])
def test_the_resize_is_pillows_lanczos_within_one_on_nearly_all_pixels(shape, size):
    frames = _frames(*shape)
    ours = lanczos_resize(_channels_first(frames), size).permute(0, 2, 3, 1).numpy()
    pillow = np.stack([np.asarray(Image.fromarray(frame).resize((size, size), Image.Resampling.LANCZOS)) for frame in frames])
    difference = np.abs(ours - pillow)
    assert (difference <= 1).mean() > 0.999
    assert difference.mean() < 0.3


@pytest.mark.parametrize("size", [56, 224])
@pytest.mark.parametrize("shape", [(256, 256), (240, 320), (128, 128)])
def test_rlinfs_resize_is_pillows_bicubic_within_one_on_nearly_all_pixels(shape, size):
    frames = _frames(*shape)
    ours = bicubic_resize(_channels_first(frames), size).permute(0, 2, 3, 1).numpy()
    pillow = np.stack([np.asarray(Image.fromarray(frame).resize((size, size), Image.Resampling.BICUBIC)) for frame in frames])
    difference = np.abs(ours - pillow)
    assert (difference <= 1).mean() > 0.9999
    assert difference.mean() < 0.3


@pytest.mark.parametrize("resize", [lanczos_resize, bicubic_resize])
def test_an_image_of_the_right_size_is_not_resampled(resize):
    frames = _channels_first(_frames(84, 84))
    assert torch.equal(resize(frames, 84), frames)


def test_the_whole_way_of_rlinf_is_pillows_bicubic_and_each_towers_normalisation():
    frames, settings = _frames(256, 256), ImageSettings(image_size=224, path="rlinf")
    pixel_values = preprocess(torch.from_numpy(frames), settings).numpy()
    for frame, values in zip(frames, pixel_values, strict=True):
        resized = np.asarray(Image.fromarray(frame).resize((224, 224), Image.Resampling.BICUBIC)) / 255
        for tower in range(2):
            expected = (resized - settings.means[tower]) / settings.stds[tower]
            steps = np.abs(values[3 * tower : 3 * tower + 3].transpose(1, 2, 0) - expected) * settings.stds[tower] * 255
            assert (steps <= 1 + 1e-3).mean() > 0.9999


def test_the_two_ways_differ_by_more_than_rounding():
    frames = torch.from_numpy(_frames(256, 256))
    openvla, rlinf = (preprocess(frames, ImageSettings(image_size=224, path=path)) for path in ("openvla", "rlinf"))
    assert (openvla - rlinf).abs().mean() > 0.05
    assert ImageSettings(image_size=224, path="rlinf").crop_area == 1 > ImageSettings(image_size=224).crop_area


def test_the_crop_keeps_nine_tenths_of_the_area_not_of_the_side():
    ramp = torch.arange(201.0).expand(1, 1, 201, 201)
    row = center_crop(ramp)[0, 0, 100]
    kept = (row[-1] - row[0]) / 200
    assert kept == pytest.approx(CROP_AREA**0.5, abs=0.01)
    assert abs(kept - CROP_AREA) > 0.04


@pytest.mark.parametrize("size", [56, 84])
def test_the_crop_is_tensorflows_within_one(size):
    frame = _frames(size, size, 1)
    ours = center_crop(_channels_first(frame))[0].permute(1, 2, 0).numpy()
    difference = np.abs(ours - _tensorflow_crop(frame[0], CROP_AREA))
    assert difference.max() <= 1
    assert (difference == 0).mean() > 0.99


@pytest.mark.parametrize("jpeg", [False, True])
def test_the_whole_way_from_frame_to_pixel_values_is_the_references_within_one_step(jpeg):
    frames, settings = _frames(128, 128), ImageSettings(image_size=56, jpeg=jpeg)
    pixel_values = preprocess(torch.from_numpy(frames), settings).numpy()
    assert pixel_values.shape == (3, 6, 56, 56)
    for frame, values in zip(frames, pixel_values, strict=True):
        image = Image.fromarray(frame)
        if jpeg:
            file = io.BytesIO()
            image.save(file, "JPEG", quality=95)
            image = Image.open(file)
        cropped = _tensorflow_crop(np.asarray(image.resize((56, 56), Image.Resampling.LANCZOS)), CROP_AREA) / 255
        for tower in range(2):
            expected = (cropped - settings.means[tower]) / settings.stds[tower]
            steps = np.abs(values[3 * tower : 3 * tower + 3].transpose(1, 2, 0) - expected) * settings.stds[tower] * 255
            assert (steps <= 1 + 1e-3).mean() > 0.999


@pytest.mark.gpu
def test_a_gpu_prepares_images_as_the_cpu_does():
    frames, settings = torch.from_numpy(_frames(256, 256)), ImageSettings(image_size=224)
    assert torch.equal(jpeg_round_trip(frames.cuda()).cpu(), jpeg_round_trip(frames))
    steps = (preprocess(frames.cuda(), settings).cpu() - preprocess(frames, settings)).abs() * 255 * 0.25
    assert (steps < 0.05).float().mean() > 0.999
    assert steps.max() < 1.1


def test_rows_of_a_batch_do_not_influence_each_other():
    frames, settings = torch.from_numpy(_frames(64, 64, 5)), ImageSettings(image_size=28, jpeg=True)
    alone = torch.cat([preprocess(frame[None], settings) for frame in frames])
    torch.testing.assert_close(preprocess(frames, settings), alone, atol=1e-5, rtol=0)


def test_a_checkpoints_own_normalisation_wins():
    data = settings_to_json(ImageSettings(image_size=56)) | {"means": [[0.1, 0.2, 0.3], [0.4, 0.5, 0.6]]}
    settings = settings_from_json(data, image_size=56, jpeg=True)
    assert settings.means == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    assert settings.stds == ImageSettings(image_size=56).stds
    assert settings.jpeg


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"input_sizes": [[3, 384, 384], [3, 384, 384]]}, "input_sizes.*224"),
        ({"means": [[0.5, 0.5, 0.5]]}, "means"),
        ({"stds": [[0.5, 0.5, 0.0]] * 2}, "stds"),
    ],
)
def test_image_settings_for_another_model_are_refused(data, message):
    with pytest.raises(ValueError, match=message):
        settings_from_json(data, image_size=224, jpeg=False)


@pytest.mark.parametrize("images", [torch.zeros(2, 8, 8, 3), torch.zeros(2, 3, 8, 8, dtype=torch.uint8)])
def test_images_of_the_wrong_kind_are_refused(images):
    with pytest.raises(ValueError, match="uint8"):
        preprocess(images, ImageSettings(image_size=28))
