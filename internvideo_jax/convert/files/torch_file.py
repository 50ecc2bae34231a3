"""State dicts out of files that `torch.save` wrote, without PyTorch and without running them."""

import itertools
import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from internvideo_jax.convert.files import pickle_values as values
from internvideo_jax.convert.files import torch_pickle, torch_zip
from internvideo_jax.convert.files.checkpoint import (
    Checkpoint,
    CheckpointError,
    LazyTensor,
    contiguous_strides,
    extent,
)
from internvideo_jax.convert.files.pickle_summary import summarize
from internvideo_jax.environment import printable

# Where trainers put the weights, in the order in which the released loaders look.
_WRAPPERS = ("model", "module", "state_dict", "model_state_dict", "model_state", "checkpoint")
_SEARCH_DEPTH = 4
_MAX_SHOWN = 100
# In messages: characters of a name, and names.
_MAX_NAME = 100
_MAX_LISTED = 20

_OPTIMIZER_KEYS = frozenset({"optimizer_state_dict", "optimizer", "param_groups"})
_OPTIMIZER = "this is the state of an optimizer; give the file of the model's weights beside it"
_DISTRIBUTED_TENSORS = frozenset({"ShardedTensor", "DTensor", "FlatParameter", "_rebuild_dtensor"})
_DISTRIBUTED = (
    "parameters sharded by PyTorch's FSDP; gather them where they were trained"
    " (torch.distributed.checkpoint.state_dict.get_model_state_dict with full_state_dict=True)"
)

_DTYPES = {
    **{name: np.dtype(name) for name in ("float64", "float32", "float16", "bool")},
    **{name: np.dtype(name) for name in ("int64", "int32", "int16", "int8")},
    **{name: np.dtype(name) for name in ("uint64", "uint32", "uint16", "uint8")},
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "float8_e4m3fn": np.dtype(ml_dtypes.float8_e4m3fn),
    "float8_e4m3fnuz": np.dtype(ml_dtypes.float8_e4m3fnuz),
    "float8_e5m2": np.dtype(ml_dtypes.float8_e5m2),
    "float8_e5m2fnuz": np.dtype(ml_dtypes.float8_e5m2fnuz),
    "float8_e8m0fnu": np.dtype(ml_dtypes.float8_e8m0fnu),
}


def open_torch_file(path: Path, key: str | None = None) -> Checkpoint:
    """Opens a `.pt`, `.pth` or `.bin` file in PyTorch's zip format (torch 1.6 and later).

    The weights are the first of "model", "module", "state_dict" that holds tensors by name (looked
    for inside one another), else the file's top level, else the only such place in the file.

    Args:
      path: the file.
      key: another place to take them from, by names joined with dots, e.g. "model_ema".

    Raises:
      UnsafePickleError: the file asks to call something.
      CheckpointError: damaged, hostile, or without a state dict; the message says which.
    """
    records = torch_zip.read_records(path)
    prefix = _archive_prefix(path, records)
    try:
        _check_byte_order(path, records.get(prefix + "byteorder"))
        root = torch_pickle.loads(_read(path, records[prefix + "data.pkl"]))
        places = _find_state_dicts(root)
        chosen = _choose(root, places, key)
        return Checkpoint(
            path=path,
            tensors=_tensors(path, places[chosen], records, prefix),
            key=".".join(chosen) or None,
            metadata=_metadata(root, chosen),
        )
    except CheckpointError as error:
        raise type(error)(f"{path}: {error}") from None


def _archive_prefix(path: Path, records: Mapping[str, torch_zip.Record]) -> str:
    prefixes = [match[1] for name in records if (match := re.fullmatch(r"([^/]+/)data\.pkl", name))]
    if len(prefixes) != 1:
        raise CheckpointError(
            f"{path} is a zip archive but not one that torch.save wrote: it should hold one "
            f"<name>/data.pkl and holds {len(prefixes)}"
        )
    if prefixes[0] + "constants.pkl" in records:
        raise CheckpointError(
            f"{path} is a TorchScript program; in PyTorch save its weights alone with "
            "torch.save(torch.jit.load(path).state_dict(), new_path)"
        )
    return prefixes[0]


def _read(path: Path, record: torch_zip.Record) -> bytes:
    # One byte past the limit is enough for the pickle reader to refuse it.
    with open(path, "rb") as file:
        file.seek(record.offset)
        return file.read(min(record.size, torch_pickle.MAX_BYTES + 1))


def _check_byte_order(path: Path, record: torch_zip.Record | None) -> None:
    # Absent before torch 2.1, when every supported machine was little-endian.
    order = "little" if record is None else _read(path, record)[:16].decode("ascii", "replace")
    if order != "little":
        raise CheckpointError(
            f"its byte order is {order!r}, expected 'little'; load and save it again with PyTorch "
            "on a little-endian machine"
        )


def _as_mapping(value: Any) -> dict[Any, Any] | None:
    """Returns the items of a dict or of an object of an unknown dict class (EasyDict, ...)."""
    if isinstance(value, values.Opaque):
        return value.items or None
    return value if isinstance(value, dict) else None


def _find_state_dicts(root: Any) -> dict[tuple[str, ...], dict[Any, Any]]:
    """Returns place -> items of every mapping near the top that holds tensors by name."""
    found = {}
    seen: set[int] = set()
    queue: list[tuple[tuple[str, ...], Any]] = [((), root)]
    for place, value in queue:
        items = _as_mapping(value)
        # Once each, however often a hostile file refers to the same mapping.
        if items is None or id(items) in seen:
            continue
        seen.add(id(items))
        named = {name: item for name, item in items.items() if isinstance(name, str)}
        if any(isinstance(item, values.Tensor) for item in named.values()):
            found[place] = items
        if len(place) < _SEARCH_DEPTH:
            queue.extend(((*place, name), item) for name, item in named.items())
    return found


def _is_named(place: tuple[str, ...], key: str) -> bool:
    return sum(len(name) + 1 for name in place) == len(key) + 1 and ".".join(place) == key


def _brief(name: Any) -> str:
    """A name of any type and length as a message has it."""
    if not isinstance(name, str):
        return f"<{type(name).__name__}>"
    return printable(name[:_MAX_NAME], kept="") + "..." * (len(name) > _MAX_NAME)


def _listed(names: Iterable[Any]) -> list[str]:
    """The first of many names."""
    shown = [_brief(name) for name in itertools.islice(names, _MAX_LISTED + 1)]
    return [*shown[:_MAX_LISTED], *(["..."] if len(shown) > _MAX_LISTED else [])]


def _choose(root: Any, places: Mapping[tuple[str, ...], Any], key: str | None) -> tuple[str, ...]:
    names = _listed(".".join(map(_brief, place)) or "the top level" for place in places)
    if key is not None:
        for place in places:
            if _is_named(place, key):
                return place
        raise CheckpointError(f"no tensors under {key!r}; there are tensors under {names}")
    wrapped = [place for place in places if all(name in _WRAPPERS for name in place)]
    if wrapped:
        # Inside of a wrapper before beside it.
        return min(wrapped, key=lambda place: [*map(_WRAPPERS.index, place), len(_WRAPPERS)])
    if len(places) == 1:
        return next(iter(places))
    if isinstance(root, values.Opaque) and isinstance(root.state, dict):
        raise CheckpointError(
            f"it holds a whole object of the class {root.kind}; in PyTorch save its weights alone "
            "with torch.save(model.state_dict(), new_path)"
        )
    if not places:
        top = _as_mapping(root) or {}
        raise CheckpointError(
            "no tensors by name in it"
            + (f"; its top level has the keys {_listed(top)}" if top else "")
            + (f": {_OPTIMIZER}" if _OPTIMIZER_KEYS & top.keys() else "")
        )
    raise CheckpointError(f"several sets of tensors, under {names}; choose one with key=")


def _tensors(
    path: Path, state: Mapping[Any, Any], records: Mapping[str, torch_zip.Record], prefix: str
) -> dict[str, LazyTensor]:
    """Resolves every tensor of a state dict; all that cannot be read are reported together."""
    file_size = path.stat().st_size
    tensors: dict[str, LazyTensor] = {}
    errors = []
    for name, value in state.items():
        if not isinstance(name, str):
            errors.append(f"{_brief(name)}: the name is not a string")
        elif isinstance(value, values.Tensor):
            try:
                tensors[name] = _locate(path, value, records, prefix, file_size)
            except CheckpointError as error:
                errors.append(f"{_brief(name)}: {error}")
        elif isinstance(value, values.Opaque) and not value.items:
            advice = f": {_DISTRIBUTED}" if value.kind.name in _DISTRIBUTED_TENSORS else ""
            errors.append(
                f"{_brief(name)}: a value of the kind {value.kind}, which is not a plain"
                f" tensor{advice}"
            )
    if errors:
        shown = "".join(f"\n  {error}" for error in errors[:_MAX_SHOWN])
        raise CheckpointError(f"{len(errors)} of {len(state)} entries cannot be read:{shown}")
    return tensors


def _locate(
    path: Path,
    tensor: values.Tensor,
    records: Mapping[str, torch_zip.Record],
    prefix: str,
    file_size: int,
) -> LazyTensor:
    """Finds the bytes of a tensor and checks that all of it lies inside its record."""
    dtype = _DTYPES.get(tensor.dtype)
    if dtype is None:
        raise CheckpointError(f"its dtype {tensor.dtype} is not supported ({', '.join(_DTYPES)})")
    record = records.get(f"{prefix}data/{tensor.storage.key}")
    if record is None:
        raise CheckpointError(f"its data (record data/{tensor.storage.key}) is missing")
    unit = _DTYPES.get(tensor.storage.dtype, np.dtype(np.uint8)).itemsize
    stored = tensor.storage.length * unit
    if stored > record.size:
        raise CheckpointError(f"its data has {record.size} bytes instead of {stored}")
    # Strides of 0 let a few bytes claim any size.
    if math.prod(max(size, 1) for size in tensor.shape) > file_size:
        raise CheckpointError(
            f"shape {tensor.shape} claims more elements than the whole file has bytes"
        )
    shape, contiguous = tensor.shape, contiguous_strides(tensor.shape)
    # PyTorch leaves any stride on axes of one element.
    strides = tuple(
        step if size > 1 else plain
        for size, step, plain in zip(shape, tensor.strides, contiguous, strict=True)
    )
    last = tensor.offset + extent(shape, strides)
    if last * dtype.itemsize > stored:
        raise CheckpointError(
            f"shape {shape} with strides {strides} at offset {tensor.offset} needs {last} "
            f"elements; its data has {stored // dtype.itemsize}"
        )
    return LazyTensor(
        path=path,
        offset=record.offset + tensor.offset * dtype.itemsize,
        shape=shape,
        dtype=dtype,
        strides=None if strides == contiguous else strides,
    )


def _metadata(root: Any, chosen: tuple[str, ...]) -> dict[str, Any]:
    """Summarises what lies beside the state dict at the file's top level."""
    if not chosen:
        return {}
    top = _as_mapping(root) or {}
    return summarize((name, item) for name, item in top.items() if name != chosen[0])
