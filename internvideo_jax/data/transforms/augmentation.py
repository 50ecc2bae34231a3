"""Random changes of training clips: what pre-training and fine-tuning do to decoded frames.

Each random part is a pair: `draw_x(rng, ...)` gives parameters, and a pure function applies them
to all frames of the clip alike. `pretraining_augment`, `finetuning_augment` and
`random_resized_crop` do both.

Source: upstream's `single_modality/datasets/transforms.py` (pre-training),
`video_transforms.py` and `random_erasing.py` as `kinetics_sparse.py` puts them together, and
`multi_modality/dataset/__init__.py` (stage 2).
"""

import dataclasses
import math
from typing import NamedTuple

import numpy as np

from internvideo_jax.data.config import DataConfig
from internvideo_jax.data.transforms.frames import (
    Box,
    antialiased_crop,
    bicubic_crop,
    erase,
    resized_crop,
)
from internvideo_jax.data.transforms.randaugment import (
    Operation,
    apply_operations,
    draw_operations,
    parse_policy,
)
from internvideo_jax.preprocessing import VideoPreprocessing, normalize

MULTI_SCALES = (1.0, 0.875, 0.75, 0.66)
# A crop whose side is this close to the wanted one is made to fit, which spares its resizing.
MAX_SIDE_DIFFERENCE = 2
CROP_AREA = (0.08, 1.0)
# Of stage 2: less may leave out what a text is about.
LARGE_CROP_AREA = (0.5, 1.0)
CROP_ASPECT = (0.75, 1.3333)
CROP_TRIES = 10
ERASED_AREA = (0.02, 1 / 3)
ERASED_ASPECT = (0.3, 1 / 0.3)
ERASING_TRIES = 100
FLIP_PROBABILITY = 0.5


class PretrainingDraw(NamedTuple):
    """Which part of the frames is seen, and whether mirrored."""

    box: Box
    flip: bool


def multi_scale_crops(height: int, width: int, size: int) -> list[tuple[int, int]]:
    """Sides (height, width) of multi-scale crops, equally likely; some occur more than once.

    Args:
      height: of the frames in pixels.
      width: of the frames in pixels.
      size: side that the crop will be scaled to.
    """
    short = min(height, width)
    sides = [max(int(short * scale), 1) for scale in MULTI_SCALES]
    sides = [
        size if abs(side - size) <= MAX_SIDE_DIFFERENCE and size <= short else side
        for side in sides
    ]
    return [(h, w) for i, h in enumerate(sides) for j, w in enumerate(sides) if abs(i - j) <= 1]


def multi_scale_offsets(
    height: int, width: int, crop_height: int, crop_width: int
) -> list[tuple[int, int]]:
    """The 13 places (top, left) of a multi-scale crop, equally likely.

    Corners, centre, middles of the edges and quarter points, in steps of whole pixels.
    """
    down, right = (height - crop_height) // 4, (width - crop_width) // 4
    grid = (
        *((0, 0), (0, 4), (4, 0), (4, 4), (2, 2)),
        *((2, 0), (2, 4), (4, 2), (0, 2)),
        *((1, 1), (1, 3), (3, 1), (3, 3)),
    )
    return [(i * down, j * right) for i, j in grid]


def draw_pretraining(
    rng: np.random.Generator, height: int, width: int, size: int, flip: bool = True
) -> PretrainingDraw:
    """Draws the crop and the flip of one pre-training clip."""
    crops = multi_scale_crops(height, width, size)
    crop = crops[rng.integers(len(crops))]
    offsets = multi_scale_offsets(height, width, *crop)
    box = Box(*offsets[rng.integers(len(offsets))], *crop)
    return PretrainingDraw(box, bool(rng.random() < FLIP_PROBABILITY) and flip)


def apply_pretraining(frames: np.ndarray, draw: PretrainingDraw, size: int) -> np.ndarray:
    """Applies a draw to frames, uint8 `[T, H, W, 3]` -> `[T, size, size, 3]`."""
    cropped = antialiased_crop(frames, draw.box, size)
    return _flipped(cropped) if draw.flip else cropped


def pretraining_augment(
    frames: np.ndarray, rng: np.random.Generator, size: int, flip: bool = True
) -> np.ndarray:
    """What stage 1 does to a training clip: multi-scale crop, Pillow's bilinear resize, flip.

    Args:
      frames: uint8 `[T, H, W, 3]` as decoded.
      rng: random numbers; the same state gives the same clip.
      size: side of the result in pixels.
      flip: whether clips may be mirrored (not where left and right are labels, as in
        Something-Something).

    Returns:
      uint8 `[T, size, size, 3]`, not normalised.
    """
    height, width = frames.shape[1:3]
    draw = draw_pretraining(rng, height, width, size, flip)
    return apply_pretraining(frames, draw, size)


@dataclasses.dataclass(frozen=True, eq=False)
class FinetuningDraw:
    """Everything random about one fine-tuning clip.

    Attributes:
      operations: of RandAugment, in order.
      box: part of the frames that is seen.
      flip: whether it is mirrored.
      erased: box of the result that is filled with `noise`; None for none.
      noise: float32 `[T, erased.height, erased.width, 3]`, or None.
    """

    operations: tuple[Operation, ...]
    box: Box
    flip: bool
    erased: Box | None
    noise: np.ndarray | None


def draw_crop(
    rng: np.random.Generator,
    height: int,
    width: int,
    shares: tuple[float, float] = CROP_AREA,
) -> Box:
    """Draws a box of some share of the area with an aspect (width / height) of 3/4 to 4/3.

    Where none of ten fits into the frame, the largest central one with an allowed aspect serves.
    """
    low, high = np.log(CROP_ASPECT)
    for _ in range(CROP_TRIES):
        area = rng.uniform(*shares) * height * width
        aspect = math.exp(rng.uniform(low, high))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            top, left = rng.integers(height - h + 1), rng.integers(width - w + 1)
            return Box(int(top), int(left), h, w)
    w = min(width, round(height * CROP_ASPECT[1]))
    h = min(height, round(width / CROP_ASPECT[0]))
    return Box((height - h) // 2, (width - w) // 2, h, w)


def draw_erasing(rng: np.random.Generator, height: int, width: int) -> Box | None:
    """Draws a box of 2 to 33 % of the area with an aspect (height / width) of 0.3 to 1 / 0.3.

    None where none of a hundred is smaller than the frame on both sides.
    """
    low, high = np.log(ERASED_ASPECT)
    for _ in range(ERASING_TRIES):
        area = rng.uniform(*ERASED_AREA) * height * width
        aspect = math.exp(rng.uniform(low, high))
        h, w = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w < width and 0 < h < height:
            top, left = rng.integers(height - h + 1), rng.integers(width - w + 1)
            return Box(int(top), int(left), h, w)
    return None


def draw_finetuning(
    rng: np.random.Generator, shape: tuple[int, ...], config: DataConfig, flip: bool = True
) -> FinetuningDraw:
    """Draws what happens to frames of a `shape` (T, H, W, 3)."""
    frames, height, width = shape[:3]
    operations = draw_operations(rng, parse_policy(config.rand_augment))
    box = draw_crop(rng, height, width)
    flip = bool(rng.random() < FLIP_PROBABILITY) and flip
    erased = noise = None
    if rng.random() < config.erase_probability:
        erased = draw_erasing(rng, config.image_size, config.image_size)
    if erased is not None:
        noise = rng.standard_normal((frames, erased.height, erased.width, 3), np.float32)
    return FinetuningDraw(operations, box, flip, erased, noise)


def apply_finetuning(frames: np.ndarray, draw: FinetuningDraw, size: int) -> np.ndarray:
    """Applies a draw to frames, uint8 `[T, H, W, 3]` -> float32 `[T, size, size, 3]`."""
    frames = apply_operations(frames, draw.operations)
    pixels = resized_crop(frames, draw.box, size)
    frames = normalize(pixels, VideoPreprocessing())
    if draw.flip:
        frames = _flipped(frames)
    if draw.erased is not None and draw.noise is not None:
        frames = erase(frames, draw.erased, draw.noise)
    return frames


def finetuning_augment(
    frames: np.ndarray, rng: np.random.Generator, config: DataConfig, flip: bool = True
) -> np.ndarray:
    """What fine-tuning does to a training clip: RandAugment, random resized crop, flip, erasing.

    Args:
      frames: uint8 `[T, H, W, 3]` as decoded.
      rng: random numbers; the same state gives the same clip.
      config: `image_size`, `rand_augment` and `erase_probability`.
      flip: whether clips may be mirrored.

    Returns:
      float32 `[T, size, size, 3]`, normalised with ImageNet's constants (noise replaces normalised
      pixels).
    """
    draw = draw_finetuning(rng, frames.shape, config, flip)
    return apply_finetuning(frames, draw, config.image_size)


def random_resized_crop(
    frames: np.ndarray, rng: np.random.Generator, size: int, flip: bool = True
) -> np.ndarray:
    """What stage 2 does to a training clip: a crop of at least half of it, bicubic resize, flip.

    Args:
      frames: uint8 `[T, H, W, 3]` as decoded.
      rng: random numbers; the same state gives the same clip.
      size: side of the result in pixels.
      flip: whether clips may be mirrored.

    Returns:
      uint8 `[T, size, size, 3]`, not normalised.
    """
    height, width = frames.shape[1:3]
    box = draw_crop(rng, height, width, LARGE_CROP_AREA)
    cropped = bicubic_crop(frames, box, size)
    return _flipped(cropped) if rng.random() < FLIP_PROBABILITY and flip else cropped


def _flipped(frames: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(frames[:, :, ::-1])
