"""Bicubic resizing; the exact bytes of torchvision are in the goldens."""

import cv2
import numpy as np
import pytest

from internvideo_jax.data.transforms.bicubic import resize_square
from internvideo_jax.data.transforms.frames import resizer


def noise(height, width):
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)


@pytest.mark.parametrize(("height", "width"), [(60, 84), (20, 50), (17, 31), (1, 9), (40, 28)])
def test_sides_become_equal_as_opencv_scales_them_in_floats(height, width):
    frame = noise(height, width)
    resized = resize_square(frame, 28)
    assert (resized.shape, resized.dtype) == ((28, 28, 3), np.uint8)
    expected = cv2.resize(frame.astype(np.float64), (28, 28), interpolation=cv2.INTER_CUBIC)
    # But for the rounding of halves.
    assert np.abs(resized - np.clip(expected, 0, 255)).max() < 0.51


def test_a_square_of_the_size_stays_as_it_is():
    frame = noise(28, 28)
    assert resize_square(frame, 28) is frame


def test_a_model_says_how_its_frames_are_scaled():
    frame = noise(20, 50)
    assert resizer("bilinear_short_side", 28)(frame).shape == (28, 70, 3)
    assert resizer("bicubic_square", 28)(frame).shape == (28, 28, 3)
