"""Resizing and cropping on the host."""

import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file

from internvideo_jax.data.sampling import uniform_indices
from internvideo_jax.data.transforms import center_crop, eval_frame, resize_short_side

SHARED = os.environ.get("INTERNVIDEO_SHARED")


def noise(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)


@pytest.mark.parametrize(
    ("height", "width", "expected"),
    [
        (240, 320, (224, 298)),  # 298.67
        (320, 240, (298, 224)),
        (256, 340, (224, 297)),  # 297.5
        (100, 100, (224, 224)),
        (480, 640, (224, 298)),
    ],
)
def test_long_side_is_rounded_down(height, width, expected):
    resized = resize_short_side(noise(height, width), 224)
    assert resized.shape == (*expected, 3)
    assert resized.dtype == np.uint8


def test_fitting_frames_stay_as_they_are():
    frame = noise(224, 300)
    assert resize_short_side(frame, 224) is frame


def test_pixels_are_bilinear_without_antialiasing():
    # Halving samples between pixels 0 and 1, 2 and 3, ...; an antialiased filter would see more.
    frame = noise(16, 24)
    exact = frame.reshape(8, 2, 12, 2, 3).mean((1, 3))
    np.testing.assert_allclose(resize_short_side(frame, 8), exact, atol=0.51)
    # A fifth: exactly the middle pixel of five.
    assert np.array_equal(resize_short_side(noise(20, 30), 4), noise(20, 30)[2::5, 2::5])


def test_strips_are_refused():
    with pytest.raises(ValueError, match="less extreme sides, found 20000x2"):
        resize_short_side(np.zeros((2, 20000, 3), np.uint8), 224)


@pytest.mark.parametrize(
    ("height", "width", "top", "left"),
    [
        (10, 13, 0, 2),  # margin 3: 1.5 goes to the even 2
        (10, 11, 0, 0),  # margin 1: 0.5 goes to the even 0
        (15, 10, 2, 0),  # margin 5: 2.5 goes to the even 2
        (10, 14, 0, 2),
        (10, 10, 0, 0),
    ],
)
def test_odd_margins_are_halved_to_even(height, width, top, left):
    frame = noise(height, width)
    assert np.array_equal(center_crop(frame, 10), frame[top : top + 10, left : left + 10])


def test_whole_clips_can_be_cropped():
    clip = np.stack([noise(12, 18), noise(12, 18)[::-1]])
    assert np.array_equal(center_crop(clip, 8)[1], center_crop(clip[1], 8))


def test_small_frames_are_not_cropped():
    with pytest.raises(ValueError, match=r"at least 8x8 pixels, found 9x7"):
        center_crop(noise(7, 9), 8)


@given(height=st.integers(1, 200), width=st.integers(1, 200), size=st.integers(1, 64))
def test_evaluation_frames_are_square(height, width, size):
    frame = np.broadcast_to(np.uint8(77), (height, width, 3))
    result = eval_frame(np.ascontiguousarray(frame), size)
    assert result.shape == (size, size, 3)
    assert np.all(result == 77)


@pytest.mark.skipif(not SHARED, reason="INTERNVIDEO_SHARED (reference values) is not set")
def test_upstream_validation_view():
    file = Path(SHARED) / "goldens" / "internvideo2_stage1" / "eval_views.safetensors"
    golden = load_file(file)
    indices = uniform_indices(len(golden["in/video"]), 4)
    pixels = np.stack([eval_frame(frame, 14) for frame in golden["in/video"][indices]])
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    expected = golden["out/validation"].transpose(1, 2, 3, 0)
    np.testing.assert_allclose((pixels / 255 - mean) / std, expected, atol=1e-5)
