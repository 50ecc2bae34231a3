"""Augmentation of training clips: what is drawn and what is done with it."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from internvideo_jax.data.config import DataConfig
from internvideo_jax.data.transforms.augmentation import (
    FinetuningDraw,
    PretrainingDraw,
    apply_finetuning,
    apply_pretraining,
    draw_crop,
    draw_erasing,
    draw_finetuning,
    draw_pretraining,
    multi_scale_crops,
    multi_scale_offsets,
)
from internvideo_jax.data.transforms.frames import Box
from internvideo_jax.data.transforms.randaugment import Operation
from internvideo_jax.preprocessing import IMAGENET_MEAN, IMAGENET_STD

sides = st.integers(1, 400)


def clip(frames: int = 3, height: int = 40, width: int = 60) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (frames, height, width, 3), np.uint8)


def test_multi_scale_crops():
    # 340x256: sides 256, 224, 192, 168; neighbouring scales may be combined.
    crops = multi_scale_crops(256, 340, 224)
    assert len(crops) == 10
    assert crops[:4] == [(256, 256), (256, 224), (224, 256), (224, 224)]
    # 238 * 0.875 = 208 and 300 * 0.75 = 225: close to 224, hence exactly that.
    assert (224, 224) in multi_scale_crops(300, 400, 224)
    assert (225, 225) not in multi_scale_crops(300, 400, 224)
    # A side is never made larger than the frame.
    assert max(max(crop) for crop in multi_scale_crops(223, 300, 224)) == 223


def test_multi_scale_offsets():
    offsets = multi_scale_offsets(256, 340, 192, 224)
    assert len(set(offsets)) == 13
    down, right = 16, 29
    assert {(0, 0), (0, 4 * right), (4 * down, 0), (4 * down, 4 * right)} < set(offsets)
    assert (2 * down, 2 * right) in offsets
    assert {(down, right), (down, 3 * right), (3 * down, right), (3 * down, 3 * right)} < set(
        offsets
    )


@given(height=sides, width=sides, size=st.integers(1, 256), seed=st.integers(0, 9))
def test_drawn_boxes_fit(height, width, size, seed):
    pretraining = draw_pretraining(np.random.default_rng(seed), height, width, size).box
    for box in (pretraining, draw_crop(np.random.default_rng(seed), height, width)):
        assert 0 <= box.top <= height - box.height
        assert 0 <= box.left <= width - box.width
        assert min(box.height, box.width) > 0


def test_pretraining_draws_are_uniform():
    rng = np.random.default_rng(0)
    draws = [draw_pretraining(rng, 256, 340, 224) for _ in range(4000)]
    shapes = [(draw.box.height, draw.box.width) for draw in draws]
    for shape in set(multi_scale_crops(256, 340, 224)):
        # 10 crops, equally likely.
        assert abs(shapes.count(shape) - 400) < 5 * np.sqrt(400)
    assert abs(sum(draw.flip for draw in draws) - 2000) < 5 * np.sqrt(1000)
    assert not any(draw_pretraining(rng, 256, 340, 224, flip=False).flip for _ in range(50))


def test_pretraining():
    frames, box = clip(), Box(4, 8, 30, 30)
    plain = apply_pretraining(frames, PretrainingDraw(box, False), 30)
    assert np.array_equal(plain, frames[:, 4:34, 8:38])
    flipped = apply_pretraining(frames, PretrainingDraw(box, True), 30)
    assert np.array_equal(flipped, plain[:, :, ::-1])


def test_random_crops_have_the_distribution_of_upstream():
    rng = np.random.default_rng(0)
    boxes = [draw_crop(rng, 1000, 1000) for _ in range(4000)]
    areas = np.array([box.height * box.width for box in boxes]) / 1e6
    aspects = np.array([box.width / box.height for box in boxes])
    assert 0.078 < areas.min() < 0.1
    assert areas.max() > 0.95
    assert 0.745 < aspects.min() < 0.76
    assert 1.31 < aspects.max() < 1.34
    # Symmetric in the logarithm.
    assert abs(np.log(aspects).mean()) < 5 * np.log(aspects).std() / np.sqrt(len(boxes))
    # Up to three quarters every aspect fits, so that areas stay as uniform as they are drawn.
    fitting = areas[areas < 0.75]
    assert abs((fitting < 0.4).mean() - 0.32 / 0.67) < 5 * np.sqrt(0.25 / len(fitting))
    tops = np.array([box.top / max(1000 - box.height, 1) for box in boxes])
    assert abs(tops.mean() - 0.5) < 5 * np.sqrt(1 / 12 / len(boxes))


@pytest.mark.parametrize(
    ("height", "width", "expected"),
    [(10, 1000, Box(0, 493, 10, 13)), (1000, 12, Box(492, 0, 16, 12))],
)
def test_strips_are_cropped_in_the_middle(height, width, expected):
    assert draw_crop(np.random.default_rng(0), height, width) == expected


def test_erased_boxes():
    rng = np.random.default_rng(0)
    boxes = [draw_erasing(rng, 224, 224) for _ in range(2000)]
    areas = np.array([box.height * box.width for box in boxes]) / 224**2
    aspects = np.array([box.height / box.width for box in boxes])
    assert 0.018 < areas.min() < 0.03
    assert 0.31 < areas.max() < 0.345
    assert 0.27 < aspects.min() < 0.32
    assert 3.1 < aspects.max() < 3.6
    assert all(0 <= box.top <= 224 - box.height for box in boxes)
    assert all(0 <= box.left <= 224 - box.width for box in boxes)
    assert draw_erasing(rng, 1, 1) is None


def test_finetuning_draws():
    rng, config = np.random.default_rng(0), DataConfig(image_size=16, rand_augment="rand-m7-n4")
    draws = [draw_finetuning(rng, (3, 40, 60, 3), config) for _ in range(2000)]
    erased = [draw for draw in draws if draw.erased is not None]
    assert abs(len(erased) - 500) < 5 * np.sqrt(375)
    assert abs(sum(draw.flip for draw in draws) - 1000) < 5 * np.sqrt(500)
    assert abs(np.mean([len(draw.operations) for draw in draws]) - 2) < 5 / np.sqrt(2000)
    noise = np.concatenate([draw.noise.ravel() for draw in erased])
    assert abs(noise.mean()) < 5 / np.sqrt(noise.size)
    assert abs(noise.std() - 1) < 5 / np.sqrt(2 * noise.size)
    for draw in erased:
        assert draw.noise.shape == (3, draw.erased.height, draw.erased.width, 3)
    off = DataConfig(image_size=16, rand_augment="rand-n0", erase_probability=0.0)
    for _ in range(50):
        draw = draw_finetuning(rng, (3, 40, 60, 3), off, flip=False)
        assert (draw.operations, draw.flip, draw.erased, draw.noise) == ((), False, None, None)


def test_parts_of_finetuning_come_in_order():
    frames = clip(height=30, width=30)
    whole = Box(0, 0, 30, 30)
    draw = FinetuningDraw((Operation("Invert", 0),), whole, True, None, None)
    result = apply_finetuning(frames, draw, 30)
    expected = ((255 - frames[:, :, ::-1]) / 255 - IMAGENET_MEAN) / IMAGENET_STD
    np.testing.assert_allclose(result, expected, atol=2e-6)
    noise = np.full((3, 5, 6, 3), 7, np.float32)
    erased = dataclasses.replace(draw, erased=Box(1, 2, 5, 6), noise=noise)
    result = apply_finetuning(frames, erased, 30)
    assert np.all(result[:, 1:6, 2:8] == 7)
    np.testing.assert_allclose(result[:, 6:], expected[:, 6:], atol=2e-6)
