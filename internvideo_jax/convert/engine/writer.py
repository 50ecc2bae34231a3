"""Writing a tree of arrays in Orbax's on-disk layout while holding about one layer of it."""

import collections
import math
import tempfile
from collections.abc import Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
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
# Pieces waiting or being written: enough to keep two writers busy.
MAX_BYTES_IN_FLIGHT = 128 << 20
_WRITERS = 2
# As large as `cp` writes. For larger ones Linux looks for memory in large blocks, which a virtual
# machine may have to fetch from its host: that takes several times as long.
_WRITE_BYTES = 1 << 18


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

    Pieces are put in order and written in the background, at most `MAX_BYTES_IN_FLIGHT` (or one
    piece) at a time.

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
        for path, array in declared.items():
            _create(folders[path], array)
        for path, index, piece in pieces:
            missing[path].remove(index)
            array = declared[path]
            shape = array.shape if index is None else array.shape[1:]
            if (piece.shape, piece.dtype) != (shape, array.dtype):
                raise ValueError(
                    f"expected {path!r} in pieces of shape {shape} and dtype {array.dtype}, found"
                    f" {piece.shape} and {piece.dtype}"
                )
            if index is None or not array.is_small:
                queue.write(path, folders[path], piece, array.chunks, index)
                continue
            if path not in gathered:
                gathered[path] = np.empty(array.shape, array.dtype)
            gathered[path][index] = piece
            if not missing[path]:
                queue.write(path, folders[path], gathered.pop(path), array.chunks)
        if never := [path for path, indices in missing.items() if indices]:
            raise ValueError(f"expected every piece of the arrays, found some of {never} missing")
        queue.drain()
        save_stored_arrays(directory, {p: StoredArray(folder) for p, folder in folders.items()})
        return {path: queue.sums[path] for path in declared}


def _create(folder: Path, array: Declared) -> None:
    """Makes the folder of an array whose chunks are files of plain numbers.

    Uncompressed: float weights hardly shrink, and trying takes several times the time of writing.
    """
    spec = {
        "driver": "zarr",
        "kvstore": {"driver": "memory"},
        "metadata": {"chunks": array.chunks, "compressor": None, "dimension_separator": "."},
    }
    store = ts.open(spec, create=True, dtype=ts.dtype(array.dtype), shape=array.shape).result()
    assert store.kvstore is not None
    folder.mkdir()
    (folder / ".zarray").write_bytes(store.kvstore[".zarray"])


class _Queue:
    """Chunks on their way to their files, of which `write` and `drain` raise the errors.

    TensorStore would write each of them at once; see `_WRITE_BYTES`. They are not synchronised:
    after a power cut a conversion is repeated, and waiting for the disk would double its time.

    Attributes:
      sums: by path, the checksum of what has been written of an array.
    """

    def __init__(self) -> None:
        self.sums: collections.Counter[str] = collections.Counter()
        self._waiting: collections.deque[tuple[str, int, Future[int]]] = collections.deque()

    def __enter__(self) -> Self:
        self._threads = ThreadPoolExecutor(_WRITERS, thread_name_prefix="write")
        return self

    def __exit__(self, *_: object) -> None:
        # After an error nothing may be written while the folder is removed.
        self._threads.shutdown(cancel_futures=True)

    def write(
        self,
        path: str,
        folder: Path,
        array: np.ndarray,
        chunks: tuple[int, ...],
        layer: int | None = None,
    ) -> None:
        """Begins to write an array, or a layer of a stacked one, chunk by chunk."""
        place = () if layer is None else (layer,)
        size = math.prod(chunks) * array.itemsize
        # A scalar has no rows.
        rows, count = (chunks[len(place)], len(array)) if array.ndim else (1, 1)
        for number, row in enumerate(range(0, count, rows)):
            part = array[row : row + rows] if array.ndim else array
            index = (*place, number, *(0,) * (len(chunks) - len(place) - 1))
            first = (layer or 0) * array.size + row * (array.size // count)
            self.drain(MAX_BYTES_IN_FLIGHT - size)
            file = folder / ".".join(map(str, index))
            future = self._threads.submit(_write_chunk, file, part, size, first)
            self._waiting.append((path, size, future))

    def drain(self, limit: int = 0) -> None:
        """Waits until at most so many bytes are under way."""
        while self._waiting and sum(size for _, size, _ in self._waiting) > limit:
            path, _, future = self._waiting.popleft()
            self.sums[path] = (self.sums[path] + future.result()) % 2**32


def _write_chunk(file: Path, part: np.ndarray, size: int, first: int) -> int:
    """Writes a chunk of `size` bytes; returns what it adds to the checksum of its array.

    Args:
      file: to make.
      part: the numbers; of an array's last rows they may be fewer than fit.
      size: bytes that the file is to have.
      first: number of the first of them in the array.
    """
    part = contiguous(part)
    with open(file, "wb", buffering=0) as raw:
        left = part.reshape(-1).view(np.uint8).data
        while left:
            left = left[raw.write(left[:_WRITE_BYTES]) :]
        raw.truncate(size)
    return partial_checksum(part, first)
