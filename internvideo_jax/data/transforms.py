"""What happens to decoded frames on the host: resizing and cropping of uint8 pixels.

Normalisation happens on the device, see `internvideo_jax.models.preprocessing`.
"""

import cv2
import numpy as np

# A resized frame beyond this (an 8192 x 8192 picture) can only come from a degenerate strip, whose
# long side grows without bound while its short side grows to the model's input.
MAX_RESIZED_PIXELS = 2**26


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
