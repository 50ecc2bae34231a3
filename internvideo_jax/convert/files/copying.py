"""Arrays in C order, whatever their layout, at the speed of memory."""

from collections.abc import Iterator

import cv2
import numpy as np

# Of numbers that are handed out together: they stay in a cache from one reader to the next.
_PIECE_BYTES = 1 << 20
# Of numbers that are put in order together: a kilobyte or more is read of each row of the source,
# of which smaller parts are read no faster.
_BLOCK_BYTES = 1 << 22

# What OpenCV calls numbers of these sizes; it moves bits and looks at none.
_OPENCV = {1: np.uint8, 2: np.uint16, 4: np.float32, 8: np.float64}


def pieces(array: np.ndarray) -> Iterator[np.ndarray]:
    """The numbers of an array in C order, in flat pieces of a megabyte.

    A piece may lie where an earlier one lay: whoever wants to keep it copies it.

    PyTorch stores a linear layer as [out, in] and Flax as [in, out], so that most weights of a
    model are transposed. NumPy walks such a source column by column, one cache line for each
    element; OpenCV's transpose is five to ten times as fast.
    """
    if array.flags.c_contiguous:
        yield from _split(array)
        return
    # As integers, because extension dtypes (bfloat16) are copied one element at a time.
    bits = np.dtype(f"u{array.itemsize}") if array.itemsize in _OPENCV else array.dtype
    source = _merge_axes(array.view(bits))
    rows = max(1, _BLOCK_BYTES // (source[0].size * source.itemsize))
    buffer = np.empty((min(rows, len(source)), *source.shape[1:]), bits)
    for start in range(0, len(source), rows):
        part = source[start : start + rows]
        block = buffer[: len(part)]
        _copy(block, part)
        yield from _split(block.view(array.dtype))


def _split(array: np.ndarray) -> Iterator[np.ndarray]:
    """The numbers of an array in C order, a piece at a time."""
    numbers = array.reshape(-1)
    step = _PIECE_BYTES // array.itemsize
    return (numbers[start : start + step] for start in range(0, len(numbers), step))


def _merge_axes(array: np.ndarray) -> np.ndarray:
    """Returns a view with adjacent axes joined where one step covers both."""
    shape: list[int] = []
    strides: list[int] = []
    for size, stride in zip(array.shape, array.strides, strict=True):
        if size == 1:
            continue
        if shape and strides[-1] == size * stride:
            shape[-1] *= size
            strides[-1] = stride
        else:
            shape.append(size)
            strides.append(stride)
    return np.lib.stride_tricks.as_strided(array, shape, strides, writeable=False)


def _copy(target: np.ndarray, source: np.ndarray) -> None:
    if source.itemsize in _OPENCV and _is_transposed(source):
        kind = _OPENCV[source.itemsize]
        cv2.transpose(source.T.view(kind), dst=target.view(kind))
    else:
        np.copyto(target, source)


def _is_transposed(array: np.ndarray) -> bool:
    """Whether this is a matrix each of whose columns lies in one piece, one after the other."""
    if array.ndim != 2:
        return False
    step, column = array.strides
    return step == array.itemsize and column >= len(array) * step
