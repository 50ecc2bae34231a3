"""Writing a tree of arrays in Orbax's on-disk layout while holding about one layer of it."""

import math
import os
import tempfile
from collections import Counter, defaultdict, deque
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np

from internvideo_jax.checksums import partial_checksum
from internvideo_jax.convert.engine import orbax_layout
from internvideo_jax.convert.engine.finite import count_others, is_finite
from internvideo_jax.convert.files.copying import pieces

# Larger arrays are split by rows into chunks; smaller stacked ones are stored as one chunk.
MAX_CHUNK_BYTES = 64 << 20
MAX_WHOLE_BYTES = 8 << 20
# Parts of arrays waiting or being written: enough to keep two writers busy.
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
        """Whether it is stored as one chunk."""
        size = math.prod(self.shape) * self.dtype.itemsize
        return size <= MAX_WHOLE_BYTES or len(self.shape) <= self.is_stacked

    @property
    def chunks(self) -> tuple[int, ...]:
        """Shape of the chunks in which it is stored: a layer, or as many rows of it as fit."""
        if self.is_small:
            return self.shape
        layer = (1,) if self.is_stacked else ()
        rows, *row = self.shape[len(layer) :]
        fitting = MAX_CHUNK_BYTES // (math.prod(row) * self.dtype.itemsize)
        return (*layer, max(1, min(rows, fitting)), *row)


class Written(NamedTuple):
    """What was seen of the numbers while they were written.

    Attributes:
      sums: the checksum of each array, see `checksums`.
      not_finite: how many are "NaN" and "infinite", by path and index of what was given to write;
        nothing of what is finite.
    """

    sums: dict[str, int]
    not_finite: dict[tuple[str, int | None], Counter[str]]


def write_arrays(
    directory: Path,
    declared: Mapping[str, Declared],
    parts: Iterable[tuple[str, int | None, np.ndarray]],
) -> Written:
    """Writes a tree of arrays part by part; `orbax.checkpoint` restores it like one of its own.

    Parts are put in order and written in the background, at most `MAX_BYTES_IN_FLIGHT` (or one of
    them) at a time.

    Args:
      directory: the checkpoint to make.
      declared: the arrays by path, names from the root joined by "/".
      parts: path, index and numbers of each array (index None) or layer of a stacked one, in any
        order and memory layout; they must not be changed later.

    Raises:
      OSError: the disk is full or cannot be written.
      ValueError: a part of another shape or dtype, or one that was never written.
    """
    missing: dict[str, set[Any]] = {
        path: set(range(array.shape[0])) if array.is_stacked else {None}
        for path, array in declared.items()
    }
    directory = Path(directory).absolute()
    directory.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=directory.parent) as scratch, _Queue() as queue:
        complete = Path(scratch, directory.name)
        complete.mkdir()
        folders = {path: complete / orbax_layout.folder_name(path) for path in declared}
        for path, array in declared.items():
            orbax_layout.create_array(folders[path], array.shape, array.dtype, array.chunks)
        for path, index, part in parts:
            missing[path].remove(index)
            array = declared[path]
            shape = array.shape if index is None else array.shape[1:]
            if (part.shape, part.dtype) != (shape, array.dtype):
                raise ValueError(
                    f"expected {path!r} in parts of shape {shape} and dtype {array.dtype}, found"
                    f" {part.shape} and {part.dtype}"
                )
            for chunk in _chunks(folders[path], array, index, part):
                queue.write(path, index, chunk)
        if never := [path for path, indices in missing.items() if indices]:
            raise ValueError(f"expected every part of the arrays, found some of {never} missing")
        queue.drain()
        orbax_layout.describe_tree(complete, declared)
        complete.rename(directory)
        return Written({path: queue.sums[path] for path in declared}, dict(queue.not_finite))


class _Chunk(NamedTuple):
    """Numbers for one file of an array.

    Attributes:
      file: where they go.
      size: bytes of the whole file.
      offset: of the first of them in it, in bytes.
      first: number of the first of them in the array.
      numbers: some or all of what the file holds.
    """

    file: Path
    size: int
    offset: int
    first: int
    numbers: np.ndarray


def _chunks(folder: Path, array: Declared, index: int | None, part: np.ndarray) -> Iterator[_Chunk]:
    """Which numbers of an array, or of a layer of a stacked one, go where."""
    size = math.prod(array.chunks) * part.itemsize
    first = (index or 0) * part.size
    if array.is_small:
        file = folder / orbax_layout.chunk_name((0,) * len(array.shape))
        yield _Chunk(file, size, first * part.itemsize, first, part)
        return
    place = () if index is None else (index,)
    rows = array.chunks[len(place)]
    for number, row in enumerate(range(0, len(part), rows)):
        numbers = part[row : row + rows]
        file = folder / orbax_layout.chunk_name((*place, number, *(0,) * (part.ndim - 1)))
        yield _Chunk(file, size, 0, first + row * (part.size // len(part)), numbers)


class _Task(NamedTuple):
    """A chunk of an array, or of a layer of it, that is being written."""

    path: str
    layer: int | None
    nbytes: int
    future: Future[tuple[int, Counter[str]]]


class _Queue:
    """Chunks on their way to their files, of which `write` and `drain` raise the errors.

    TensorStore would write each of them at once; see `_WRITE_BYTES`. They are not synchronised:
    after a power cut a conversion is repeated, and waiting for the disk would double its time.

    Attributes:
      sums: by path, the checksum of what has been written of an array.
      not_finite: see `Written`.
    """

    def __init__(self) -> None:
        self.sums: Counter[str] = Counter()
        self.not_finite: defaultdict[tuple[str, int | None], Counter[str]] = defaultdict(Counter)
        self._waiting: deque[_Task] = deque()

    def __enter__(self) -> Self:
        self._threads = ThreadPoolExecutor(_WRITERS, thread_name_prefix="write")
        return self

    def __exit__(self, *_: object) -> None:
        # After an error nothing may be written while the folder is removed.
        self._threads.shutdown(cancel_futures=True)

    def write(self, path: str, index: int | None, chunk: _Chunk) -> None:
        """Begins to write a chunk of an array."""
        self.drain(MAX_BYTES_IN_FLIGHT - chunk.numbers.nbytes)
        future = self._threads.submit(_write_chunk, chunk)
        self._waiting.append(_Task(path, index, chunk.numbers.nbytes, future))

    def drain(self, limit: int = 0) -> None:
        """Waits until at most so many bytes are under way."""
        while self._waiting and sum(task.nbytes for task in self._waiting) > limit:
            task = self._waiting.popleft()
            added, others = task.future.result()
            self.sums[task.path] = (self.sums[task.path] + added) % 2**32
            if others:
                self.not_finite[task.path, task.layer] += others


def _write_chunk(chunk: _Chunk) -> tuple[int, Counter[str]]:
    """Writes a chunk; returns what it adds to its array's checksum, and what is not finite."""
    total, first, others = 0, chunk.first, Counter[str]()
    with open(chunk.file, "wb", buffering=0, opener=_beside_others) as file:
        file.seek(chunk.offset)
        for piece in pieces(chunk.numbers):
            left = piece.view(np.uint8).data
            while left:
                left = left[file.write(left[:_WRITE_BYTES]) :]
            total += partial_checksum(piece, first)
            if not is_finite(piece):
                others += count_others(piece)
            first += len(piece)
        file.truncate(chunk.size)
    return total, others


def _beside_others(path: str, flags: int) -> int:
    """Opens a file that other chunks may be in already."""
    return os.open(path, flags & ~os.O_TRUNC, 0o666)
