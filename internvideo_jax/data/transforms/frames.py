"""What happens to decoded frames on the host: resizing, cropping and erasing, with given boxes.

Clips that stay uint8 are normalised on the device, see `internvideo_jax.preprocessing`.
Where upstream used Pillow or OpenCV the same library resizes here, since their bytes differ.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import cv2
import numpy as np
from PIL import Image

from internvideo_jax.data.transforms.bicubic import resize_square
from internvideo_jax.preprocessing import Resize

# A resized frame beyond this (an 8192 x 8192 picture) can only come from a degenerate strip, whose
# long side grows without bound while its short side grows to the model's input.
MAX_RESIZED_PIXELS = 2**26


class Box(NamedTuple):
    """A rectangle of a frame, in pixels from its top left corner."""

    top: int
    left: int
    height: int
    width: int


def resize_short_side(frame: np.ndarray, size: int) -> np.ndarray:
    """Scales a frame so that its short side has `size` pixels.

    Bilinear without antialiasing, as OpenCV does it on bytes; the long side becomes
    int(size * long / short). A frame whose short side already fits is returned as it is.

    Args:
      frame: uint8 `[H, W, 3]`.
      size: wanted short side in pixels.

    Returns:
      uint8 `[H', W', 3]` with min(H', W') == size.

    Raises:
      ValueError: the frame is so elongated that the result would not fit into memory.

    Source: upstream's `single_modality/datasets/video_transforms.py`.
    """
    height, width = frame.shape[:2]
    short, long = min(height, width), max(height, width)
    if short == size:
        return frame
    resized = int(size * long / short)
    if size * resized > MAX_RESIZED_PIXELS:
        raise ValueError(
            f"expected a frame with less extreme sides, found {width}x{height}, whose long side"
            f" would become {resized} pixels; crop it first"
        )
    shape = (size, resized) if width < height else (resized, size)
    return cv2.resize(frame, shape, interpolation=cv2.INTER_LINEAR)


def resizer(resize: Resize, size: int) -> Callable[[np.ndarray], np.ndarray]:
    """What scales frames as a model wants them; `center_crop` makes squares of the result."""
    scale = resize_square if resize == "bicubic_square" else resize_short_side
    return functools.partial(scale, size=size)


def center_crop(frames: np.ndarray, size: int) -> np.ndarray:
    """Takes the central square; odd margins are halved with rounding half to even.

    Args:
      frames: `[..., H, W, C]`.
      size: side of the square, at most H and W.

    Returns:
      `[..., size, size, C]`, a view.

    Raises:
      ValueError: the frame is smaller than the square.

    Source: upstream's `single_modality/datasets/video_transforms.py`.
    """
    height, width = frames.shape[-3:-1]
    if min(height, width) < size:
        raise ValueError(
            f"expected frames of at least {size}x{size} pixels, found {width}x{height};"
            " resize them first"
        )
    top, left = round((height - size) / 2), round((width - size) / 2)
    return frames[..., top : top + size, left : left + size, :]


def eval_frame(frame: np.ndarray, size: int) -> np.ndarray:
    """The evaluation view of a frame, uint8 `[H, W, 3]` -> `[size, size, 3]`: resize, then crop."""
    return center_crop(resize_short_side(frame, size), size)


def long_side_crops(frames: np.ndarray, crops: int) -> np.ndarray:
    """Takes squares as wide as the short side, evenly spread along the long side.

    Square i of several begins at int(i * margin / (crops - 1)); a single one lies in the middle.

    Args:
      frames: `[..., H, W, C]`.
      crops: K, how many.

    Returns:
      `[K, ..., S, S, C]` with S = min(H, W), from left to right or top to bottom.

    Raises:
      ValueError: no crops.

    Source: upstream's `single_modality/datasets/kinetics_sparse.py`, test mode.
    """
    if crops < 1:
        raise ValueError(f"expected at least 1 crop, found {crops}")
    height, width = frames.shape[-3:-1]
    size, margin = min(height, width), abs(height - width)
    starts = [int(i * (margin / (crops - 1))) for i in range(crops)] if crops > 1 else [margin // 2]
    if height >= width:
        return np.stack([frames[..., start : start + size, :, :] for start in starts])
    return np.stack([frames[..., start : start + size, :] for start in starts])


def resized_crop(frames: np.ndarray, box: Box, size: int) -> np.ndarray:
    """Cuts out a box and scales it to a square: bilinear, without antialiasing, in float32.

    Pixel centres lie at halves and the border repeats, as in `torch.nn.functional.interpolate`
    with `align_corners=False`; normalising before or after makes no difference.

    Args:
      frames: uint8 or float32 `[T, H, W, C]`.
      box: inside the frames.
      size: side of the square in pixels.

    Returns:
      float32 `[T, size, size, C]`, in the range of the input.
    """
    cut = _cut(frames, box).astype(np.float32)
    return np.stack([cv2.resize(frame, (size, size)) for frame in cut])


def bicubic_crop(frames: np.ndarray, box: Box, size: int) -> np.ndarray:
    """Cuts out a box and scales it to a square: bicubic (a = -0.75), without antialiasing.

    Args:
      frames: uint8 `[T, H, W, 3]`.
      box: inside the frames.
      size: side of the square in pixels.

    Returns:
      uint8 `[T, size, size, 3]`.
    """
    cut = np.ascontiguousarray(_cut(frames, box))
    return np.stack([cv2.resize(x, (size, size), interpolation=cv2.INTER_CUBIC) for x in cut])


def antialiased_crop(frames: np.ndarray, box: Box, size: int) -> np.ndarray:
    """Cuts out a box and scales it to a square: bilinear with antialiasing, as Pillow does it.

    Args:
      frames: uint8 `[T, H, W, 3]`.
      box: inside the frames.
      size: side of the square in pixels.

    Returns:
      uint8 `[T, size, size, 3]`.
    """
    images = [Image.fromarray(frame) for frame in np.ascontiguousarray(_cut(frames, box))]
    bilinear = Image.Resampling.BILINEAR
    return np.stack([np.asarray(image.resize((size, size), bilinear)) for image in images])


def erase(frames: np.ndarray, box: Box, noise: np.ndarray) -> np.ndarray:
    """Replaces a box by noise, in all frames at the same place.

    Args:
      frames: float32 `[T, H, W, C]`, left as they are.
      box: inside the frames.
      noise: `[T, box.height, box.width, C]`.

    Returns:
      float32 `[T, H, W, C]`.
    """
    erased = frames.copy()
    _cut(erased, box)[...] = noise
    return erased


def _cut(frames: np.ndarray, box: Box) -> np.ndarray:
    """A box of `[T, H, W, C]`, as a view."""
    height, width = frames.shape[1:3]
    inside = 0 <= box.top <= height - box.height and 0 <= box.left <= width - box.width
    if not (inside and box.height > 0 and box.width > 0):
        raise ValueError(f"expected a box inside frames of {width}x{height} pixels, found {box}")
    return frames[:, box.top : box.top + box.height, box.left : box.left + box.width]
