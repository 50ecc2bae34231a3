"""What every checkpoint format is read into: names, shapes and dtypes now, data on demand."""

import dataclasses
import math
import mmap
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np


class CheckpointError(ValueError):
    """A checkpoint that is missing, damaged, of an unknown format, or not what it claims to be."""


class UnsafePickleError(CheckpointError):
    """A pickle that asks to call something; nothing was called."""


@dataclasses.dataclass(frozen=True)
class LazyTensor:
    """A tensor inside a file: `read` maps its bytes, nothing before that touches them.

    Attributes:
      path: the file.
      offset: position of the first element in the file, in bytes.
      shape: the tensor's shape.
      dtype: its numpy dtype (`ml_dtypes` for bfloat16 and float8).
      strides: step along each axis in elements, all >= 0; None for C order.
    """

    path: Path
    offset: int
    shape: tuple[int, ...]
    dtype: np.dtype
    strides: tuple[int, ...] | None = None

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of the tensor's elements, an expanded element counted as often as it occurs."""
        return self.size * self.dtype.itemsize

    def read(self) -> np.ndarray:
        """Returns a read-only array backed by a mapping of this tensor's bytes alone.

        The pages leave memory when the array is freed, so that reading a file tensor by tensor
        never holds more than one of them.

        Raises:
          CheckpointError: the file was cut since it was opened.
        """
        if self.size == 0:
            return np.empty(self.shape, self.dtype)
        strides = self.strides or contiguous_strides(self.shape)
        span = extent(self.shape, strides) * self.dtype.itemsize
        # A mapping must start at a multiple of the page size.
        start = self.offset - self.offset % mmap.ALLOCATIONGRANULARITY
        length = self.offset - start + span
        try:
            with open(self.path, "rb") as file:
                mapped = mmap.mmap(file.fileno(), length, offset=start, access=mmap.ACCESS_READ)
        except ValueError:
            raise CheckpointError(
                f"{self.path} is shorter than when it was opened; leave it alone and try again"
            ) from None
        byte_strides = tuple(step * self.dtype.itemsize for step in strides)
        return np.ndarray(self.shape, self.dtype, mapped, self.offset - start, byte_strides)


@dataclasses.dataclass(frozen=True)
class Checkpoint(Mapping[str, LazyTensor]):
    """The flat state dict of a checkpoint: PyTorch key -> `LazyTensor`, in file order.

    Attributes:
      path: the file or folder that was read.
      tensors: the state dict.
      key: where in the file it lay, e.g. "module"; None when it is the file's top level.
      metadata: what else the file tells (epoch, arguments, ...), as plain dicts, lists, strings
        and numbers; objects are shown by their fields.
    """

    path: Path
    tensors: Mapping[str, LazyTensor]
    key: str | None = None
    metadata: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __getitem__(self, name: str) -> LazyTensor:
        return self.tensors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.tensors)

    def __len__(self) -> int:
        return len(self.tensors)


def contiguous_strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Returns the C-order strides of `shape`, in elements."""
    strides = [1] * len(shape)
    for axis in range(len(shape) - 2, -1, -1):
        strides[axis] = strides[axis + 1] * shape[axis + 1]
    return tuple(strides)


def extent(shape: tuple[int, ...], strides: tuple[int, ...]) -> int:
    """Returns how many elements lie between the first and the last of a tensor, both included."""
    if 0 in shape:
        return 0
    return 1 + sum((size - 1) * step for size, step in zip(shape, strides, strict=True))
