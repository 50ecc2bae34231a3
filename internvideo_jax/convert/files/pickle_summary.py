"""What a checkpoint says besides its weights, as plain JSON-ready data of bounded size."""

import struct
from collections.abc import Iterable
from typing import Any

from internvideo_jax.convert.files import pickle_values as values

# Values of one entry that are kept: plenty for arguments, little of an optimizer's state.
MAX_VALUES = 5_000
MAX_DEPTH = 12
MAX_TEXT = 10_000

_OMITTED = "..."
_NUMPY_NUMBERS = {
    **{"f8": "<d", "f4": "<f", "f2": "<e", "b1": "<?"},
    **{"i8": "<q", "i4": "<i", "i2": "<h", "i1": "<b"},
    **{"u8": "<Q", "u4": "<I", "u2": "<H", "u1": "<B"},
}


def summarize(value: Any) -> Any:
    """Returns what the pickle reader read as dicts with string keys, lists, strings and numbers.

    Objects become a dict of their fields; tensors, classes and values without a plain form become
    a short text. What is too long, too deep, or refers to itself ends in "...".
    """
    return _Summary().plain(value, 0)


class _Summary:
    def __init__(self) -> None:
        self.left = MAX_VALUES

    def plain(self, value: Any, depth: int) -> Any:
        self.left -= 1
        if self.left < 0 or depth > MAX_DEPTH:
            return _OMITTED
        if value is None or isinstance(value, (bool, float)):
            return value
        if isinstance(value, int):
            return value if value.bit_length() <= 64 else _OMITTED
        if isinstance(value, str):
            return value if len(value) <= MAX_TEXT else value[:MAX_TEXT] + _OMITTED
        if isinstance(value, (values.Global, values.Storage, values.Tensor, bytes, bytearray)):
            return _describe(value)
        if isinstance(value, dict):
            return self._fields(value, depth)
        if isinstance(value, (list, tuple, set, frozenset)):
            return self._sequence(value, depth)
        return self._object(value, depth)

    def _fields(self, items: dict[Any, Any], depth: int) -> dict[str, Any]:
        fields = {}
        for name, item in items.items():
            if self.left <= 0:
                fields[_OMITTED] = _OMITTED
                break
            fields[_name(name)] = self.plain(item, depth + 1)
        return fields

    def _sequence(self, items: Iterable[Any], depth: int) -> list[Any]:
        plain = []
        for item in items:
            plain.append(self.plain(item, depth + 1))
            if self.left <= 0:
                break
        return plain

    def _object(self, value: values.Opaque, depth: int) -> Any:
        if (number := _numpy_number(value)) is not None:
            return number
        if value.elements:
            return self._sequence(value.elements, depth)
        state = value.state if isinstance(value.state, dict) else {}
        if value.items or state:
            return self._fields({**state, **value.items}, depth)
        return {"class": str(value.kind), "arguments": self._sequence(value.args, depth)}


def _describe(value: Any) -> str:
    if isinstance(value, values.Tensor):
        return f"tensor {value.dtype} {list(value.shape)}"
    if isinstance(value, values.Storage):
        return f"storage {value.dtype:.40} [{value.length}]"
    if isinstance(value, values.Global):
        return str(value)
    return f"{len(value)} bytes"


def _name(key: Any) -> str:
    if isinstance(key, str):
        return key[:MAX_TEXT]
    if isinstance(key, (values.Tensor, values.Global, values.Storage, bytes)):
        return _describe(key)
    if isinstance(key, values.Opaque):
        return str(key.kind)
    return str(key) if isinstance(key, (int, float, bool, type(None))) else type(key).__name__


def _numpy_number(value: values.Opaque) -> int | float | bool | None:
    """Reads a call of `numpy.core.multiarray.scalar(dtype, bytes)`, e.g. a best accuracy."""
    if value.kind.name != "scalar" or not value.kind.module.startswith("numpy"):
        return None
    kind, data = (*value.args, None, None)[:2]
    # Protocol 2 writes bytes as the latin-1 text of a call of _codecs.encode.
    if isinstance(data, values.Opaque) and data.kind == ("_codecs", "encode") and data.args:
        text = data.args[0]
        if not isinstance(text, str) or len(text) > 8:
            return None
        data = text.encode("latin1", "replace")
    code = kind.args[0] if isinstance(kind, values.Opaque) and kind.args else None
    layout = _NUMPY_NUMBERS.get(code) if isinstance(code, str) else None
    if layout is None or not isinstance(data, bytes) or len(data) != struct.calcsize(layout):
        return None
    return struct.unpack(layout, data)[0]
