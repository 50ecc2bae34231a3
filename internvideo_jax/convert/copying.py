"""Copying transposed arrays at the speed of memory."""

import numpy as np

# Rows and columns of one block stay in the second-level cache together.
_BLOCK_BYTES = 256 << 10


def contiguous(array: np.ndarray, memory: np.ndarray | None = None) -> np.ndarray:
    """Returns `array` in C order: itself if it is, else a copy, made in `memory` if that is given.

    PyTorch stores a linear layer as [out, in] and Flax as [in, out], so that most weights of a
    model are transposed. `np.ascontiguousarray` walks such a source column by column, one cache
    line for each element; in square blocks the copy is three times as fast.

    Args:
      array: any array.
      memory: at least `array.nbytes` bytes of type uint8, to be overwritten.
    """
    if array.flags.c_contiguous:
        return array
    if memory is None:
        memory = np.empty(array.nbytes, np.uint8)
    target = memory[: array.nbytes].view(array.dtype).reshape(array.shape)
    # As integers, because extension dtypes (bfloat16) are copied one element at a time.
    bits = np.dtype(f"u{array.itemsize}") if array.itemsize in (1, 2, 4, 8) else array.dtype
    source = _merge_axes(array.view(bits))
    _copy_blocks(target.view(bits).reshape(source.shape), source)
    return target


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


def _copy_blocks(target: np.ndarray, source: np.ndarray) -> None:
    if source.nbytes <= _BLOCK_BYTES:
        np.copyto(target, source)
        return
    axis = int(np.argmax(source.shape))
    half = source.shape[axis] // 2
    for part in (slice(None, half), slice(half, None)):
        place = (slice(None),) * axis + (part,)
        _copy_blocks(target[place], source[place])
