"""Checkpoints of random numbers, as PyTorch's users write them."""

import pickle
import struct
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from internvideo_jax.convert.engine.plan import export_plan
from internvideo_jax.convert.files.safetensors_file import write_safetensors_file

Shapes = Mapping[str, tuple[int, ...]]

_DTYPE = np.dtype(np.float32)
# `torch.save` lets every record begin at a multiple of these bytes.
_ALIGNMENT = 64
# What precedes a record in a zip file, its name aside: a header, and that of an extra field.
_HEADER_BYTES = 30 + 4


def checkpoint_shapes(config: Any) -> dict[str, tuple[int, ...]]:
    """Shape of each tensor, by its PyTorch key, of a checkpoint that holds exactly this model."""
    plan = export_plan(config)
    return {
        key: shape
        for assignment in plan.loaded
        for key, shape in zip(assignment.keys, assignment.written_shapes, strict=True)
    }


def write_safetensors(path: Path, shapes: Shapes) -> None:
    """Writes a `.safetensors` file of normal float32 numbers, one tensor in memory at a time."""
    declared = {key: (shape, _DTYPE) for key, shape in shapes.items()}
    write_safetensors_file(path, declared, _tensors(shapes))


def write_torch(path: Path, shapes: Shapes) -> None:
    """Writes the same as a `.pth` file of `torch.save`, without PyTorch."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", _pickled(shapes))
        for number, (_, tensor) in enumerate(_tensors(shapes)):
            info = zipfile.ZipInfo(f"archive/data/{number}")
            start = archive.start_dir + _HEADER_BYTES + len(info.filename)
            padding = -start % _ALIGNMENT
            info.extra = struct.pack("<2H", 0x4246, padding) + bytes(padding)
            with archive.open(info, "w") as record:
                record.write(tensor.data)
        archive.writestr("archive/version", b"3\n")


# By the suffix of the file.
WRITERS: dict[str, Callable[[Path, Shapes], None]] = {
    "safetensors": write_safetensors,
    "pth": write_torch,
}


def _tensors(shapes: Shapes) -> Iterator[tuple[str, np.ndarray]]:
    rng = np.random.default_rng(0)
    for key, shape in shapes.items():
        yield key, rng.standard_normal(shape, _DTYPE)


def _pickled(shapes: Shapes) -> bytes:
    """The pickle of a state dict whose tensors lie in storages that are numbered.

    Put together by hand: Python's pickler looks for the functions that it names.
    """
    parts = [pickle.PROTO + b"\x02", pickle.EMPTY_DICT, pickle.MARK]
    for number, (key, shape) in enumerate(shapes.items()):
        strides = tuple(int(np.prod(shape[axis + 1 :])) for axis in range(len(shape)))
        storage = (
            pickle.MARK, _opcodes("storage"), _name("torch", "FloatStorage"),
            _opcodes(str(number)), _opcodes("cpu"), _opcodes(int(np.prod(shape))),
            pickle.TUPLE, pickle.BINPERSID,
        )  # fmt: skip
        parts += [
            _opcodes(key), _name("torch._utils", "_rebuild_tensor_v2"),
            pickle.MARK, *storage, *map(_opcodes, (0, shape, strides, False)),
            _name("collections", "OrderedDict"), pickle.EMPTY_TUPLE, pickle.REDUCE,
            pickle.TUPLE, pickle.REDUCE,
        ]  # fmt: skip
    return b"".join([*parts, pickle.SETITEMS, pickle.STOP])


def _opcodes(value: Any) -> bytes:
    """What pushes a plain value: its pickle without head and end."""
    return pickle.dumps(value, 2)[2:-1]


def _name(module: str, name: str) -> bytes:
    return pickle.GLOBAL + f"{module}\n{name}\n".encode()
