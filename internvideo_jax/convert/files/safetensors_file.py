"""Reading and writing `.safetensors` files tensor by tensor.

Source: the format's specification, https://huggingface.co/docs/safetensors (layout, limits).
"""

import contextlib
import json
import math
import struct
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import ml_dtypes
import numpy as np
import safetensors

from internvideo_jax.convert.files.checkpoint import Checkpoint, CheckpointError, LazyTensor
from internvideo_jax.convert.files.copying import contiguous
from internvideo_jax.files import atomic_file

# What the library reads at most.
_MAX_HEADER_BYTES = 100_000_000
# What NumPy has at least.
_MAX_AXES = 32
_LENGTH = struct.Struct("<Q")
_METADATA = "__metadata__"

_DTYPES = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
    "I64": np.dtype(np.int64),
    "I32": np.dtype(np.int32),
    "I16": np.dtype(np.int16),
    "I8": np.dtype(np.int8),
    "U64": np.dtype(np.uint64),
    "U32": np.dtype(np.uint32),
    "U16": np.dtype(np.uint16),
    "U8": np.dtype(np.uint8),
    "BOOL": np.dtype(np.bool_),
}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}


def looks_like_safetensors(start: bytes) -> bool:
    """Tells from a file's first bytes whether it is meant to be a safetensors file."""
    if len(start) <= _LENGTH.size:
        return False
    (length,) = _LENGTH.unpack_from(start)
    return start[_LENGTH.size : _LENGTH.size + 1] == b"{" and length <= _MAX_HEADER_BYTES


def open_safetensors_file(path: Path) -> Checkpoint:
    """Opens a `.safetensors` file; tensors keep the file's order.

    Raises:
      CheckpointError: truncated, damaged, or breaking the format's rules.
    """
    try:
        with open(path, "rb") as raw:
            (length,) = _LENGTH.unpack(raw.read(_LENGTH.size).ljust(_LENGTH.size, b"\0"))
        # The library checks the header, and that the tensors cover the data without holes.
        with safetensors.safe_open(path, framework="numpy") as file:
            position = _LENGTH.size + length
            tensors = {}
            for name in file.offset_keys():
                part = file.get_slice(name)
                tensors[name] = _tensor(path, name, part.get_dtype(), part.get_shape(), position)
                position += tensors[name].nbytes
            return Checkpoint(path=path, tensors=tensors, metadata=file.metadata() or {})
    except (CheckpointError, safetensors.SafetensorError) as error:
        advice = "; fetch it again if the download was not complete"
        raise CheckpointError(
            f"{path} ({path.stat().st_size} bytes) is not a readable safetensors file: {error}"
            + advice * (not isinstance(error, CheckpointError))
        ) from None


def _tensor(path: Path, name: str, dtype: str, shape: list[int], offset: int) -> LazyTensor:
    if dtype not in _DTYPES:
        raise CheckpointError(
            f"tensor {name!r} has dtype {dtype!r}; supported are {', '.join(_DTYPES)}"
        )
    if len(shape) > _MAX_AXES:
        raise CheckpointError(
            f"tensor {name!r} has {len(shape)} axes; at most {_MAX_AXES} are read"
        )
    return LazyTensor(path, offset, tuple(shape), _DTYPES[dtype])


class SafetensorsWriter:
    """Writes a `.safetensors` file of declared tensors, one at a time.

    The file appears under its name when the `with` block ends without an error; otherwise nothing
    remains of it.

      with SafetensorsWriter(path, {"w": ((2, 3), np.dtype("float32"))}) as writer:
          writer.write("w", array)

    Args:
      path: the file to make; must not exist.
      declarations: name -> (shape, dtype) of every tensor, in the order in which they are stored.
      metadata: strings to store in the header.

    Raises:
      FileExistsError: the file exists.
      ValueError: a dtype that the format lacks; a tensor that was not declared, is not of the
        declared shape and dtype, was written twice, or (when the block ends) never.
    """

    def __init__(
        self,
        path: Path,
        declarations: Mapping[str, tuple[tuple[int, ...], np.dtype]],
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        self._path = Path(path)
        if self._path.exists():
            raise FileExistsError(f"{self._path} exists; choose another name or remove it first")
        self._declared = {name: (tuple(s), np.dtype(d)) for name, (s, d) in declarations.items()}
        unsupported = [n for n, (_, dtype) in self._declared.items() if dtype not in _NAMES]
        if unsupported or _METADATA in self._declared:
            names = unsupported or [_METADATA]
            raise ValueError(f"safetensors cannot hold these tensors: {', '.join(names)}")
        self._offsets: dict[str, int] = {}
        self._header = self._make_header(metadata or {})
        self._missing = set(self._declared)

    def _make_header(self, metadata: Mapping[str, str]) -> bytes:
        header: dict[str, Any] = {_METADATA: dict(metadata)} if metadata else {}
        position = 0
        for name, (shape, dtype) in self._declared.items():
            end = position + math.prod(shape) * dtype.itemsize
            header[name] = {
                "dtype": _NAMES[dtype],
                "shape": list(shape),
                "data_offsets": [position, end],
            }
            self._offsets[name] = position
            position = end
        text = json.dumps(header, separators=(",", ":")).encode()
        # The data starts at a multiple of 8 bytes, as the reference implementation makes it.
        text += b" " * (-len(text) % 8)
        self._data_start = _LENGTH.size + len(text)
        return _LENGTH.pack(len(text)) + text

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            partial = stack.enter_context(atomic_file(self._path))
            self._file = stack.enter_context(open(partial, "wb"))
            self._file.write(self._header)
            self._cleanup = stack.pop_all()
        return self

    def write(self, name: str, array: np.ndarray) -> None:
        """Stores one declared tensor; any order and memory layout will do."""
        if name not in self._missing:
            problem = "written before" if name in self._declared else "not declared"
            raise ValueError(f"tensor {name!r} was {problem}")
        expected = self._declared[name]
        if (array.shape, array.dtype) != expected:
            raise ValueError(
                f"tensor {name!r} was declared with shape {expected[0]} and dtype {expected[1]}; "
                f"got {array.shape} and {array.dtype}"
            )
        self._missing.remove(name)
        self._file.seek(self._data_start + self._offsets[name])
        self._file.write(contiguous(array).reshape(-1).view(np.uint8).data)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None and self._missing:
            error = ValueError(f"tensors never written: {', '.join(sorted(self._missing))}")
        with self._cleanup:
            if error is not None:
                raise error
