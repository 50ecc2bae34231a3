"""Bicubic resizing of bytes as torchvision does it without antialiasing, to the last bit.

OpenCV's has the same kernel, but rounds a pixel in ten thousand to the other neighbour.
"""

import functools

import numpy as np

# Of the cubic kernel, as in torch.
_A = np.float32(-0.75)


def resize_square(frame: np.ndarray, size: int) -> np.ndarray:
    """Scales a frame to a square, whatever its sides: bicubic, without antialiasing.

    Computed in float32, then rounded and clamped. A frame that already is such a square is returned
    as it is.

    Args:
      frame: uint8 `[H, W, C]`.
      size: side of the square in pixels.

    Returns:
      uint8 `[size, size, C]`.

    Source: upstream's `multi_modality/dataset/__init__.py`, with torchvision 0.14.
    """
    height, width = frame.shape[:2]
    if (height, width) == (size, size):
        return frame
    columns, column_weights = _taps(width, size)
    rows, row_weights = _taps(height, size)
    pixels = frame.astype(np.float32)
    # Sums of four, in this order: their rounding decides about halves.
    parts = (pixels[:, i] * w[:, None] for i, w in zip(columns, column_weights, strict=True))
    narrow = functools.reduce(np.add, parts)
    parts = (narrow[i] * w[:, None, None] for i, w in zip(rows, row_weights, strict=True))
    scaled = functools.reduce(np.add, parts)
    return np.clip(np.rint(scaled), 0, 255).astype(np.uint8)


@functools.lru_cache(maxsize=64)
def _taps(old: int, new: int) -> tuple[np.ndarray, np.ndarray]:
    """Numbers and weights of the four pixels that each new one is made of, `[4, new]` both.

    Pixels' centres lie at halves, and the border repeats.
    """
    scale = np.float32(old) / np.float32(new)
    places = scale * (np.arange(new, dtype=np.float32) + np.float32(0.5)) - np.float32(0.5)
    first = np.floor(places)
    t = places - first
    weights = np.stack([_outer(t + 1), _inner(t), _inner(1 - t), _outer(2 - t)])
    numbers = first.astype(np.int64) + np.arange(-1, 3)[:, None]
    return np.clip(numbers, 0, old - 1), weights


def _inner(x: np.ndarray) -> np.ndarray:
    """The kernel at distances up to 1."""
    return ((_A + 2) * x - (_A + 3)) * x * x + 1


def _outer(x: np.ndarray) -> np.ndarray:
    """The kernel at distances from 1 to 2."""
    return ((_A * x - 5 * _A) * x + 8 * _A) * x - 4 * _A
