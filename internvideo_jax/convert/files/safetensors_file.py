"""Reading and writing `.safetensors` files tensor by tensor.

Source: the format's specification, https://huggingface.co/docs/safetensors (layout, limits).
"""

import json
import math
import struct
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import safetensors

from internvideo_jax.convert.files.checkpoint import Checkpoint, CheckpointError, LazyTensor
from internvideo_jax.convert.files.copying import pieces
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


def write_safetensors_file(
    path: Path,
    declared: Mapping[str, tuple[tuple[int, ...], np.dtype]],
    tensors: Iterable[tuple[str, np.ndarray]],
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Writes a `.safetensors` file, one tensor in memory at a time; it is whole or absent.

    Args:
      path: the file to make; must not exist.
      declared: name -> (shape, dtype) of every tensor, in the order in which they are stored.
      tensors: name and numbers of each of them, in any order and memory layout.
      metadata: strings to store in the header.

    Raises:
      FileExistsError: the file exists.
      ValueError: a dtype that the format lacks; a tensor that is not of the declared shape and
        dtype, or is not declared, or never comes.
      OSError: the disk is full (`files.DiskFullError`), or the file cannot be written.
    """
    if path.exists():
        raise FileExistsError(f"{path} exists; choose another name or remove it first")
    if unsupported := [name for name, (_, dtype) in declared.items() if dtype not in _NAMES]:
        raise ValueError(f"safetensors cannot hold these tensors: {', '.join(unsupported)}")
    header: dict[str, Any] = {_METADATA: dict(metadata)} if metadata else {}
    end = 0
    for name, (shape, dtype) in declared.items():
        start, end = end, end + math.prod(shape) * dtype.itemsize
        header[name] = {
            "dtype": _NAMES[dtype],
            "shape": list(shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(header, separators=(",", ":")).encode()
    # The data starts at a multiple of 8 bytes, as the reference implementation makes it.
    text += b" " * (-len(text) % 8)
    missing = dict(declared)
    with atomic_file(path, _LENGTH.size + len(text) + end) as partial, open(partial, "wb") as file:
        file.write(_LENGTH.pack(len(text)) + text)
        for name, tensor in tensors:
            expected = missing.pop(name, None)
            if (tensor.shape, tensor.dtype) != expected:
                raise ValueError(
                    f"expected tensor {name!r} of shape and dtype {expected}, found"
                    f" {tensor.shape} and {tensor.dtype}"
                )
            file.seek(_LENGTH.size + len(text) + header[name]["data_offsets"][0])
            for piece in pieces(tensor):
                file.write(piece.view(np.uint8).data)
        if missing:
            raise ValueError(f"tensors never written: {', '.join(missing)}")
