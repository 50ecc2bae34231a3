"""Writing a tree of arrays in Orbax's on-disk layout while holding about one layer of it."""

import contextlib
import json
import math
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

import numpy as np

from internvideo_jax.convert.engine.orbax_layout import StoredArray, save_stored_arrays
from internvideo_jax.convert.files.copying import contiguous
from internvideo_jax.files import atomic_directory

# Larger pieces of an array are split by rows; smaller stacked arrays are stored as one piece.
MAX_PIECE_BYTES = 64 << 20
MAX_WHOLE_BYTES = 8 << 20
# Pieces waiting or being written: enough to keep reader and writer busy.
MAX_BYTES_IN_FLIGHT = 128 << 20
_THREADS = 2
# Linux takes in pieces of this size at about twice the speed of whole chunks.
_WRITE_BYTES = 128 << 10


class StreamingWriter:
    """Writes a tree of arrays piece by piece; `orbax.checkpoint` restores it like one of its own.

    The directory appears under its name when the `with` block ends without an error; otherwise
    nothing remains.

      with StreamingWriter(directory) as writer:
          writer.declare("params/blocks/mlp/fc1/kernel", (40, 1408, 6144), "float32", True)
          for layer, kernel in enumerate(kernels):
              writer.write("params/blocks/mlp/fc1/kernel", kernel, layer)

    Pieces are written by background threads, at most `MAX_BYTES_IN_FLIGHT` (or one piece) at a
    time: `write` waits when there are more. An array given to `write` must not be changed later.

    Raises:
      FileExistsError: the directory exists and is not empty; raised before anything is written.
      OSError: the disk is full or cannot be written.
      ValueError: a declaration or a piece that does not fit; when the block ends, the pieces that
        were never written.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = Path(directory)
        self._arrays: dict[str, _Array] = {}
        self._missing: dict[str, set[int | None]] = {}
        self._gathered: dict[str, np.ndarray] = {}
        self._cleanup = contextlib.ExitStack()

    def __enter__(self) -> Self:
        self._complete = self._cleanup.enter_context(atomic_directory(self._directory))
        self._pool = _BoundedPool(MAX_BYTES_IN_FLIGHT)
        self._cleanup.callback(self._pool.close)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with self._cleanup:
            if error is not None:
                raise error
            self._finish()

    def declare(
        self, path: str, shape: Sequence[int], dtype: Any, layer_chunked: bool = False
    ) -> None:
        """Announces an array of the tree.

        Args:
          path: names from the root joined by "/".
          shape: its full shape, all sizes > 0.
          dtype: its numpy dtype or that dtype's name.
          layer_chunked: whether it is written one index of the leading axis at a time.
        """
        shape, dtype = tuple(shape), np.dtype(dtype)
        if not re.fullmatch(r"[^/.]+(/[^/.]+)*", path):
            raise ValueError(f"{path!r} is not names without dots joined by '/'")
        if 0 in shape or (layer_chunked and not shape):
            raise ValueError(f"{path!r} of shape {shape} has nothing to write")
        for other in self._arrays:
            if f"{other}/".startswith(f"{path}/") or f"{path}/".startswith(f"{other}/"):
                raise ValueError(f"{path!r} and {other!r} cannot both be arrays of one tree")
        self._arrays[path] = _cut(shape, dtype, layer_chunked)
        self._missing[path] = set(range(shape[0])) if layer_chunked else {None}

    def write(self, path: str, array: np.ndarray, index: int | None = None) -> None:
        """Writes an array, or one layer of it; any memory layout will do.

        Args:
          path: a declared path.
          array: of the declared shape and dtype, without the leading axis if it is a layer.
          index: which layer; None for an array that was not declared as `layer_chunked`.
        """
        if path not in self._arrays:
            raise ValueError(f"{path!r} was not declared")
        declared = self._arrays[path]
        if index not in self._missing[path]:
            raise ValueError(f"piece {index} of {path!r} was written before or does not exist")
        shape = declared.shape if index is None else declared.shape[1:]
        if array.shape != shape or array.dtype != declared.dtype:
            raise ValueError(
                f"{path!r} was declared with pieces of shape {shape} and dtype {declared.dtype}; "
                f"got {array.shape} and {array.dtype}"
            )
        self._missing[path].remove(index)
        if index is None:
            self._store(path, array, 0)
        elif declared.chunks[0] == 1:
            self._store(path, array[np.newaxis], index)
        else:
            if path not in self._gathered:
                self._gathered[path] = np.empty(declared.shape, declared.dtype)
            self._gathered[path][index] = array
            if not self._missing[path]:
                self._store(path, self._gathered.pop(path), 0)

    def _store(self, path: str, array: np.ndarray, layer: int) -> None:
        """Hands an array to the pool chunk by chunk; `layer` is its place on the leading axis."""
        declared = self._arrays[path]
        folder = self._folder(path)
        if not folder.exists():
            folder.mkdir(parents=True)
            (folder / ".zarray").write_text(_zarr_metadata(declared))
        size = math.prod(declared.chunks) * declared.dtype.itemsize
        for name, piece in _pieces(declared, array, layer):
            self._pool.submit(piece.nbytes, _write_chunk, folder / name, piece, size)

    def _folder(self, path: str) -> Path:
        return self._complete.parent / "arrays" / path.replace("/", ".")

    def _finish(self) -> None:
        never = [f"{path}: {_listed(left)}" for path, left in self._missing.items() if left]
        if never or not self._arrays:
            raise ValueError(
                "pieces never written:\n  " + "\n  ".join(never or ["no array at all"])
            )
        self._pool.drain()
        save_stored_arrays(
            self._complete, {path: StoredArray(self._folder(path)) for path in self._arrays}
        )


class _Array(NamedTuple):
    """A declared array and how it is cut: into `chunks`, several of them only along `axis`, and
    along the leading axis if that has one chunk for each layer."""

    shape: tuple[int, ...]
    dtype: np.dtype
    chunks: tuple[int, ...]
    axis: int


def _cut(shape: tuple[int, ...], dtype: np.dtype, layer_chunked: bool) -> _Array:
    if math.prod(shape) * dtype.itemsize <= MAX_WHOLE_BYTES or len(shape) <= layer_chunked:
        return _Array(shape, dtype, shape, 0)
    chunks = [1 if layer_chunked else shape[0], *shape[1:]]
    axis = next((axis for axis, size in enumerate(chunks) if size > 1), len(shape) - 1)
    pieces = -(-math.prod(chunks) * dtype.itemsize // MAX_PIECE_BYTES)
    chunks[axis] = -(-chunks[axis] // pieces)
    return _Array(shape, dtype, tuple(chunks), axis)


def _pieces(declared: _Array, array: np.ndarray, layer: int) -> Iterator[tuple[str, np.ndarray]]:
    """Cuts an array that starts at `layer` into (file name, chunk)."""
    if array.ndim == 0:
        yield "0", array
        return
    numbers = [layer, *[0] * (array.ndim - 1)]
    step = declared.chunks[declared.axis]
    before = (slice(None),) * declared.axis
    for number, start in enumerate(range(0, array.shape[declared.axis], step)):
        numbers[declared.axis] = number
        yield ".".join(map(str, numbers)), array[(*before, slice(start, start + step))]


def _zarr_metadata(declared: _Array) -> str:
    """Describes an array whose chunks are files of plain C-order numbers (zarr v2).

    Uncompressed: float weights hardly shrink, and trying takes several times the time of writing.
    """
    is_numpy = declared.dtype.isbuiltin == 1
    metadata = {
        "zarr_format": 2,
        "shape": declared.shape,
        "chunks": declared.chunks,
        # TensorStore's names for what NumPy itself lacks, e.g. "bfloat16".
        "dtype": declared.dtype.str if is_numpy else declared.dtype.name,
        "compressor": None,
        "fill_value": None,
        "filters": None,
        "order": "C",
        "dimension_separator": ".",
    }
    return json.dumps(metadata)


_thread = threading.local()


def _write_chunk(path: Path, piece: np.ndarray, size: int) -> None:
    """Writes a chunk of `size` bytes; the last one of an axis may hold less and ends in zeros."""
    # Memory that is used again need not be cleared by the system for every chunk.
    memory = getattr(_thread, "memory", None)
    if memory is None or memory.nbytes < piece.nbytes:
        memory = _thread.memory = np.empty(piece.nbytes, np.uint8)
    data = contiguous(piece, memory).reshape(-1).view(np.uint8).data
    with open(path, "wb", buffering=0) as file:
        position = 0
        while position < len(data):
            position += file.write(data[position : position + _WRITE_BYTES])
        # No fsync: after a power cut a conversion is repeated, and waiting for the disk would
        # double its time.
        file.truncate(size)


def _listed(indices: set[int | None]) -> str:
    layers = sorted(index for index in indices if index is not None)
    return f"layers {layers}" if layers else "the array"


class _BoundedPool:
    """Threads that run jobs while the bytes of all unfinished ones stay within a limit."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._in_flight = 0
        self._error: BaseException | None = None
        self._changed = threading.Condition()
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="writer")

    def submit(self, size: int, job: Callable[..., None], *args: Any) -> None:
        """Runs `job(*args)` soon; raises what an earlier job raised."""
        self._wait(lambda: self._in_flight == 0 or self._in_flight + size <= self._limit)
        with self._changed:
            self._in_flight += size
        self._threads.submit(self._run, size, job, *args)

    def drain(self) -> None:
        """Waits for all jobs; raises what any of them raised."""
        self._wait(lambda: self._in_flight == 0)

    def close(self) -> None:
        """Drops the jobs that have not started and waits for those that have."""
        self._threads.shutdown(cancel_futures=True)

    def _wait(self, condition: Callable[[], bool]) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._error is not None or condition())
            if self._error is not None:
                raise self._error

    def _run(self, size: int, job: Callable[..., None], *args: Any) -> None:
        try:
            job(*args)
        except BaseException as error:
            self._error = self._error or error
        finally:
            with self._changed:
                self._in_flight -= size
                self._changed.notify_all()
