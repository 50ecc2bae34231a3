"""Reading and writing `.safetensors` files tensor by tensor.

Source: the format's specification, https://huggingface.co/docs/safetensors (layout, limits).
"""

import json
import math
import struct
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import ml_dtypes
import numpy as np

from internvideo_jax.convert.files.checkpoint import Checkpoint, CheckpointError, LazyTensor
from internvideo_jax.convert.files.copying import contiguous

_MAX_HEADER_BYTES = 100_000_000
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
        with open(path, "rb") as file:
            file_size = file.seek(0, 2)
            file.seek(0)
            header, data_start = _read_header(file.read(_LENGTH.size), file, file_size)
        metadata = header.pop(_METADATA, {})
        if not isinstance(metadata, dict):
            raise CheckpointError("its metadata is not a dictionary")
        entries = {name: _parse_entry(name, entry) for name, entry in header.items()}
        _check_layout(entries, file_size - data_start)
    except CheckpointError as error:
        raise CheckpointError(f"{path} is not a readable safetensors file: {error}") from None
    in_order = sorted(entries.items(), key=lambda item: item[1][2])
    tensors = {
        name: LazyTensor(path, data_start + begin, shape, dtype)
        for name, (dtype, shape, begin, _) in in_order
    }
    return Checkpoint(path=path, tensors=tensors, metadata=metadata)


_Entry = tuple[np.dtype, tuple[int, ...], int, int]


def _read_header(prefix: bytes, file: Any, file_size: int) -> tuple[dict[str, Any], int]:
    if len(prefix) < _LENGTH.size:
        raise CheckpointError(f"it has only {file_size} bytes; the download is not complete")
    (length,) = _LENGTH.unpack(prefix)
    if length > _MAX_HEADER_BYTES:
        raise CheckpointError(f"its header claims {length} bytes of at most {_MAX_HEADER_BYTES}")
    text = file.read(length)
    if len(text) < length:
        raise CheckpointError(
            f"it has {file_size} bytes, fewer than its header of {length}: the download is not "
            "complete; fetch it again"
        )
    try:
        header = json.loads(text.decode("utf-8"), object_pairs_hook=_without_duplicates)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"its header is damaged: {error}") from None
    if not isinstance(header, dict):
        raise CheckpointError("its header is not a dictionary")
    return header, _LENGTH.size + length


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    mapping = dict(pairs)
    if len(mapping) < len(pairs):
        raise CheckpointError("a key occurs twice in its header")
    return mapping


def _parse_entry(name: str, entry: Any) -> _Entry:
    try:
        dtype_name, shape, (begin, end) = entry["dtype"], entry["shape"], entry["data_offsets"]
        numbers = [*shape, begin, end]
    except (TypeError, KeyError, ValueError):
        raise CheckpointError(f"tensor {name!r} lacks dtype, shape or data_offsets") from None
    if any(type(number) is not int or not 0 <= number < 1 << 62 for number in numbers):
        raise CheckpointError(f"tensor {name!r} has a size or offset that is not a number >= 0")
    if len(shape) > 32:
        raise CheckpointError(f"tensor {name!r} has {len(shape)} axes; at most 32 are read")
    dtype = _DTYPES.get(dtype_name) if isinstance(dtype_name, str) else None
    if dtype is None:
        raise CheckpointError(
            f"tensor {name!r} has dtype {dtype_name!r}; supported are {', '.join(_DTYPES)}"
        )
    needed = math.prod(shape) * dtype.itemsize
    if end - begin != needed:
        raise CheckpointError(
            f"tensor {name!r} of shape {shape} and dtype {dtype_name} takes {needed} bytes; "
            f"its offsets span {end - begin}"
        )
    return dtype, tuple(shape), begin, end


def _check_layout(entries: Mapping[str, _Entry], data_size: int) -> None:
    """The tensors must cover the data exactly: no hole, no overlap, nothing beyond the end."""
    position = 0
    for name, (_, _, begin, end) in sorted(entries.items(), key=lambda item: item[1][2:]):
        if begin != position:
            raise CheckpointError(f"tensor {name!r} starts at {begin} instead of {position}")
        position = end
    if position > data_size:
        raise CheckpointError(
            f"its tensors take {position} bytes and only {data_size} are there: the download is "
            "not complete; fetch it again"
        )
    if position < data_size:
        raise CheckpointError(f"{data_size - position} bytes follow its last tensor")


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
        self._partial = self._path.with_name(f".{self._path.name}.partial")

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
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._file = open(self._partial, "wb")
        try:
            self._file.write(self._header)
        except BaseException:
            self._discard()
            raise
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
        try:
            if kind is None:
                if self._missing:
                    raise ValueError(f"tensors never written: {', '.join(sorted(self._missing))}")
                self._file.close()
                self._partial.rename(self._path)
        finally:
            self._discard()

    def _discard(self) -> None:
        try:
            self._file.close()
        finally:
            self._partial.unlink(missing_ok=True)
