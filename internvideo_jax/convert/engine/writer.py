"""Writing a tree of arrays in Orbax's on-disk layout while holding about one layer of it."""

import collections
import errno
import math
import os
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
import tensorstore as ts

from internvideo_jax.checksums import partial_checksum
from internvideo_jax.convert.engine.orbax_layout import StoredArray, save_stored_arrays
from internvideo_jax.convert.files.copying import contiguous

# Larger pieces of an array are split by rows; smaller stacked arrays are stored as one piece.
MAX_PIECE_BYTES = 64 << 20
MAX_WHOLE_BYTES = 8 << 20
# Pieces waiting or being written: enough to keep reader and writer busy.
MAX_BYTES_IN_FLIGHT = 64 << 20


class Declared(NamedTuple):
    """An array of the tree; `is_stacked`: it is written one index of its first axis at a time."""

    shape: tuple[int, ...]
    dtype: np.dtype
    is_stacked: bool = False

    @property
    def is_small(self) -> bool:
        """Whether it is stored as one piece."""
        size = math.prod(self.shape) * self.dtype.itemsize
        return size <= MAX_WHOLE_BYTES or len(self.shape) <= self.is_stacked

    @property
    def chunks(self) -> tuple[int, ...]:
        """Shape of the pieces in which it is stored: a layer, or as many rows of it as fit."""
        if self.is_small:
            return self.shape
        layer = (1,) if self.is_stacked else ()
        rows, *row = self.shape[len(layer) :]
        fitting = MAX_PIECE_BYTES // (math.prod(row) * self.dtype.itemsize)
        return (*layer, max(1, min(rows, fitting)), *row)


def write_arrays(
    directory: Path,
    declared: Mapping[str, Declared],
    pieces: Iterable[tuple[str, int | None, np.ndarray]],
) -> dict[str, int]:
    """Writes a tree of arrays piece by piece; `orbax.checkpoint` restores it like one of its own.

    Pieces are written in the background, at most `MAX_BYTES_IN_FLIGHT` (or one piece) at a time.

    Args:
      directory: the checkpoint to make.
      declared: the arrays by path, names from the root joined by "/".
      pieces: path, index and numbers of each array (index None) or layer of a stacked one, in any
        order and memory layout; they must not be changed later.

    Returns:
      The checksum of each array, see `checksums`.

    Raises:
      OSError: the disk is full or cannot be written.
      ValueError: a piece of another shape or dtype, or one that was never written.
    """
    missing: dict[str, set[Any]] = {
        path: set(range(array.shape[0])) if array.is_stacked else {None}
        for path, array in declared.items()
    }
    gathered: dict[str, np.ndarray] = {}
    directory = Path(directory).absolute()
    directory.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=directory.parent) as scratch, _Queue() as queue:
        folders = {path: Path(scratch, path.replace("/", ".")) for path in declared}
        stores = {path: _create(folders[path], array) for path, array in declared.items()}
        for path, index, piece in pieces:
            missing[path].remove(index)
            store, array = stores[path], declared[path]
            shape = array.shape if index is None else array.shape[1:]
            if (piece.shape, piece.dtype) != (shape, array.dtype):
                raise ValueError(
                    f"expected {path!r} in pieces of shape {shape} and dtype {array.dtype}, found"
                    f" {piece.shape} and {piece.dtype}"
                )
            if index is None:
                queue.write(path, store, piece, array.chunks)
            elif not array.is_small:
                queue.write(path, store[index], piece, array.chunks, index * piece.size)
            else:
                if path not in gathered:
                    gathered[path] = np.empty(array.shape, array.dtype)
                gathered[path][index] = piece
                if not missing[path]:
                    queue.write(path, store, gathered.pop(path), array.chunks)
        if never := [path for path, indices in missing.items() if indices]:
            raise ValueError(f"expected every piece of the arrays, found some of {never} missing")
        queue.drain()
        save_stored_arrays(directory, {p: StoredArray(folder) for p, folder in folders.items()})
        return {path: queue.sums[path] for path in declared}


def _create(folder: Path, array: Declared) -> Any:
    """Makes an array whose chunks are files of plain numbers.

    Uncompressed: float weights hardly shrink, and trying takes several times the time of writing.
    Not synchronised: after a power cut a conversion is repeated, and waiting for the disk would
    double its time.
    """
    spec = {
        "driver": "zarr",
        "kvstore": {"driver": "file", "path": f"{folder}/", "file_io_sync": False},
        "metadata": {"chunks": array.chunks, "compressor": None, "dimension_separator": "."},
        "store_data_equal_to_fill_value": True,
    }
    return ts.open(spec, create=True, dtype=ts.dtype(array.dtype), shape=array.shape).result()


class _Queue:
    """Writes under way, of which `write` and `drain` raise the errors.

    Attributes:
      sums: by path, the checksum of what has been written of an array.
    """

    def __init__(self) -> None:
        self.sums: collections.Counter[str] = collections.Counter()
        self._waiting: collections.deque[tuple[int, Any]] = collections.deque()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        # After an error nothing may be written while the folder is removed.
        for waiting in self._waiting:
            waiting[1].exception()

    def write(
        self, path: str, store: Any, array: np.ndarray, chunks: tuple[int, ...], start: int = 0
    ) -> None:
        """Begins to write an array, or a layer whose numbers start at `start`, chunk by chunk."""
        parts: list[Any] = [...]
        if array.ndim:
            rows, size = chunks[len(chunks) - array.ndim], len(array)
            parts = [slice(start, min(start + rows, size)) for start in range(0, size, rows)]
        for part in parts:
            piece = contiguous(array[part])
            self.drain(MAX_BYTES_IN_FLIGHT - piece.nbytes)
            future = store[part].write(piece, can_reference_source_data_indefinitely=True)
            self._waiting.append((piece.nbytes, future))
            self.sums[path] = (self.sums[path] + partial_checksum(piece, start)) % 2**32
            start += piece.size

    def drain(self, limit: int = 0) -> None:
        """Waits until at most so many bytes are under way."""
        while self._waiting and sum(size for size, _ in self._waiting) > limit:
            error = self._waiting.popleft()[1].exception()
            if error is not None:
                # TensorStore has the system's error in its text alone.
                is_full = os.strerror(errno.ENOSPC) in str(error)
                text = f"the arrays cannot be written: {error}"
                raise OSError(errno.ENOSPC if is_full else errno.EIO, text) from error
