"""Resizing, cropping and erasing on the host."""

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from internvideo_jax.data.transforms.frames import (
    Box,
    antialiased_crop,
    center_crop,
    erase,
    eval_frame,
    long_side_crops,
    resize_short_side,
    resized_crop,
)
from internvideo_jax.preprocessing import VideoPreprocessing, normalize


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


def test_small_frames_are_not_cropped():
    with pytest.raises(ValueError, match=r"at least 8x8 pixels, found 9x7"):
        center_crop(noise(7, 9), 8)


@given(height=st.integers(1, 200), width=st.integers(1, 200), size=st.integers(1, 64))
def test_evaluation_frames_are_square(height, width, size):
    frame = np.broadcast_to(np.uint8(77), (height, width, 3))
    result = eval_frame(np.ascontiguousarray(frame), size)
    assert result.shape == (size, size, 3)
    assert np.all(result == 77)


@pytest.mark.parametrize(
    ("height", "width", "crops", "starts"),
    [
        (10, 23, 3, [0, 6, 13]),  # step 6.5
        (23, 10, 3, [0, 6, 13]),
        (10, 23, 1, [6]),
        (10, 23, 2, [0, 13]),
        (10, 10, 3, [0, 0, 0]),
        (8, 9, 5, [0, 0, 0, 0, 1]),
    ],
)
def test_crops_along_the_long_side(height, width, crops, starts):
    clip = np.stack([noise(height, width), noise(height, width)[::-1]])
    squares = long_side_crops(clip, crops)
    size = min(height, width)
    assert squares.shape == (crops, 2, size, size, 3)
    for square, start in zip(squares, starts, strict=True):
        expected = clip[:, start:] if height > width else clip[:, :, start:]
        assert np.array_equal(square, expected[:, :size, :size])


def test_no_crops_are_refused():
    with pytest.raises(ValueError, match="at least 1 crop"):
        long_side_crops(noise(8, 9), 0)


def bilinear_weights(source: int, target: int) -> np.ndarray:
    """`[target, source]`; pixel centres at halves, the border repeated."""
    centers = np.clip((np.arange(target) + 0.5) * source / target - 0.5, 0, source - 1)
    return np.maximum(0, 1 - np.abs(centers[:, None] - np.arange(source)))


@pytest.mark.parametrize("box", [Box(1, 2, 15, 9), Box(0, 0, 20, 30), Box(3, 5, 12, 12)])
def test_resized_crops_are_bilinear_without_antialiasing(box):
    clip = np.stack([noise(20, 30), noise(20, 30)[:, ::-1]])
    part = clip[:, box.top : box.top + box.height, box.left : box.left + box.width]
    rows, columns = bilinear_weights(box.height, 12), bilinear_weights(box.width, 12)
    expected = np.einsum("yh,xw,thwc->tyxc", rows, columns, part.astype(np.float64))
    resized = resized_crop(clip, box, 12)
    assert resized.dtype == np.float32
    # float32 arithmetic on values up to 255.
    np.testing.assert_allclose(resized, expected, atol=255 * 1e-6)


def test_antialiased_crops_average_what_they_shrink():
    clip = noise(32, 48)[None]
    small = antialiased_crop(clip, Box(0, 16, 32, 32), 1)
    # The triangle filter weighs the middle most; on noise it comes close to the mean.
    assert small.shape == (1, 1, 1, 3)
    np.testing.assert_allclose(small[0, 0, 0], clip[0, :, 16:].mean((0, 1)), atol=6)
    same = antialiased_crop(clip, Box(4, 5, 9, 9), 9)
    assert np.array_equal(same, clip[:, 4:13, 5:14])


@pytest.mark.parametrize(
    "box", [Box(-1, 0, 4, 4), Box(0, 0, 21, 4), Box(0, 27, 4, 4), Box(2, 2, 0, 4)]
)
def test_boxes_outside_are_refused(box):
    with pytest.raises(ValueError, match="expected a box inside frames of 30x20 pixels"):
        resized_crop(noise(20, 30)[None], box, 8)


def test_erasing_fills_one_box_of_all_frames():
    clip = np.zeros((2, 6, 8, 3), np.float32)
    noise = np.arange(2 * 2 * 3 * 3, dtype=np.float32).reshape(2, 2, 3, 3) + 1
    erased = erase(clip, Box(1, 4, 2, 3), noise)
    assert np.array_equal(erased[:, 1:3, 4:7], noise)
    assert np.count_nonzero(erased) == noise.size
    assert not clip.any()


def test_pixels_are_normalised_as_on_the_device():
    clip = noise(6, 7)[None]
    preprocessing = VideoPreprocessing()
    ours = normalize(clip, preprocessing)
    assert ours.dtype == np.float32
    np.testing.assert_allclose(ours, normalize(jnp.asarray(clip), preprocessing), atol=2e-6)
