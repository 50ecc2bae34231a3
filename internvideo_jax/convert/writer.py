"""Writing a tree of arrays in Orbax's on-disk layout while holding about one layer of it."""

import contextlib
import math
import os
import re
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

import numpy as np
import tensorstore as ts

from internvideo_jax.convert.copying import contiguous
from internvideo_jax.convert.orbax_layout import StoredArray, save_stored_arrays

# Larger pieces of an array are split by rows; smaller stacked arrays are stored as one piece.
MAX_PIECE_BYTES = 64 << 20
MAX_WHOLE_BYTES = 8 << 20
# Pieces waiting or being written: enough to keep reader and writer busy.
MAX_BYTES_IN_FLIGHT = 128 << 20
_THREADS = 2


@contextlib.contextmanager
def atomic_directory(target: Path) -> Iterator[Path]:
    """Makes a directory that appears under its name complete, or not at all.

    Yields a path beside `target`, where nothing exists yet. What the block makes there becomes
    `target` when the block ends; if it raises, everything is removed, made parents included.

    Raises:
      FileExistsError: before the block runs, if `target` exists and is not an empty directory.
    """
    target = Path(target).absolute()
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise FileExistsError(f"{target} exists; choose another output or remove it first")
    made = [folder for folder in target.parents if not folder.exists()]
    target.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{target.name}.partial-", dir=target.parent))
    complete = scratch / target.name
    try:
        yield complete
        if target.exists():
            target.rmdir()
        complete.rename(target)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
        for folder in made:
            # Only empty ones go: after a success, none is.
            with contextlib.suppress(OSError):
                folder.rmdir()


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
        self._stores: dict[str, ts.TensorStore] = {}
        self._cleanup = contextlib.ExitStack()

    def __enter__(self) -> Self:
        self._complete = self._cleanup.enter_context(atomic_directory(self._directory))
        self._pool = _BoundedPool(MAX_BYTES_IN_FLIGHT)
        self._cleanup.callback(self._pool.close)
        # Pieces are written once and never read here. No fsync: after a power cut a conversion
        # is repeated, and waiting for the disk would double its time.
        self._context = ts.Context({"file_io_sync": False, "cache_pool": {"total_bytes_limit": 0}})
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
        chunks, axis = _cut(shape, dtype.itemsize, layer_chunked)
        self._arrays[path] = _Array(shape, dtype, layer_chunked, chunks, axis)
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
        store = self._open(path)
        if index is None:
            self._store(path, array, store)
        elif declared.chunks[0] == 1:
            self._store(path, array[np.newaxis], store[index : index + 1])
        else:
            if path not in self._gathered:
                self._gathered[path] = np.empty(declared.shape, declared.dtype)
            self._gathered[path][index] = array
            if not self._missing[path]:
                self._store(path, self._gathered.pop(path), store)

    def _store(self, path: str, array: np.ndarray, region: ts.TensorStore) -> None:
        """Hands an array to the pool, one chunk at a time."""
        axis, chunks = self._arrays[path].axis, self._arrays[path].chunks
        if axis is None:
            self._pool.submit(array.nbytes, _write_chunk, path, array, region)
            return
        for start in range(0, array.shape[axis], chunks[axis]):
            stop = min(start + chunks[axis], array.shape[axis])
            place = (slice(None),) * axis + (slice(start, stop),)
            piece = array[place]
            self._pool.submit(piece.nbytes, _write_chunk, path, piece, region[place])

    def _open(self, path: str) -> ts.TensorStore:
        if path not in self._stores:
            declared = self._arrays[path]
            spec = {
                "driver": "zarr",
                "kvstore": {"driver": "file", "path": f"{self._folder(path)}/"},
                # Float weights hardly compress, and trying takes several times the copy's time.
                "metadata": {"chunks": list(declared.chunks), "compressor": None},
                "store_data_equal_to_fill_value": True,
            }
            dtype = ts.dtype(declared.dtype)
            with _as_os_errors(path):
                self._stores[path] = ts.open(
                    spec, context=self._context, create=True, dtype=dtype, shape=declared.shape
                ).result()
        return self._stores[path]

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
    """A declared array and how it is cut: into `chunks`, of which `axis` has several or one."""

    shape: tuple[int, ...]
    dtype: np.dtype
    layer_chunked: bool
    chunks: tuple[int, ...]
    axis: int | None


def _cut(
    shape: tuple[int, ...], itemsize: int, layer_chunked: bool
) -> tuple[tuple[int, ...], int | None]:
    """Returns the shape of an array's chunks and the axis along which one piece is split."""
    if math.prod(shape) * itemsize <= MAX_WHOLE_BYTES:
        return shape, None
    chunks = list(shape)
    if layer_chunked:
        chunks[0] = 1
    axis = next((axis for axis, size in enumerate(chunks) if size > 1), None)
    if axis is None:
        return tuple(chunks), None
    pieces = -(-math.prod(chunks) * itemsize // MAX_PIECE_BYTES)
    chunks[axis] = -(-chunks[axis] // pieces)
    return tuple(chunks), axis


def _write_chunk(path: str, piece: np.ndarray, region: ts.TensorStore) -> None:
    data = contiguous(piece)
    with _as_os_errors(path):
        region.write(data, can_reference_source_data_indefinitely=True).result()


@contextlib.contextmanager
def _as_os_errors(path: str) -> Iterator[None]:
    """TensorStore reports a full disk as a ValueError whose text holds the system's error code."""
    try:
        yield
    except ValueError as error:
        code = re.search(r"os_error_code='(\d+)'", str(error))
        if code is None:
            raise OSError(f"cannot write {path}: {error}") from error
        reason = os.strerror(int(code[1]))
        raise OSError(int(code[1]), f"cannot write {path}: {reason}") from error


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
