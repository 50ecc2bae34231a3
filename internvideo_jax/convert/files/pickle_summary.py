"""What a checkpoint says besides its weights, as plain JSON-ready data of bounded size."""

import itertools
from collections.abc import Iterable
from typing import Any

from internvideo_jax.convert.files import pickle_values as values

# Values of one entry that are kept: plenty for arguments, little of an optimizer's state.
MAX_VALUES = 5_000
MAX_DEPTH = 12
MAX_TEXT = 10_000

_OMITTED = "..."


def summarize(value: Any) -> Any:
    """Returns what the pickle reader read as dicts with string keys, lists, strings and numbers.

    Objects become a dict of their fields; names and values without a plain form become a short
    text. What is too long, too deep, or refers to itself ends in "...".
    """
    return _Summary().plain(value, 0)


class _Summary:
    def __init__(self) -> None:
        self.left = MAX_VALUES

    def plain(self, value: Any, depth: int) -> Any:
        self.left -= 1
        if self.left < 0 or depth > MAX_DEPTH:
            return _OMITTED
        match value:
            case None | bool() | float():
                return value
            case int():
                return value if value.bit_length() <= 64 else _OMITTED
            case str():
                return value if len(value) <= MAX_TEXT else value[:MAX_TEXT] + _OMITTED
            case values.Global() | values.Storage():
                return _text(value)
            case dict():
                return self._fields(value.items(), depth)
            case list() | tuple() | set() | frozenset():
                return self._sequence(value, depth)
            case values.Opaque(elements=[_, *_]):
                return self._sequence(value.elements, depth)
            case values.Opaque():
                state = value.state if isinstance(value.state, dict) else {}
                items = itertools.chain(state.items(), value.items.items())
                return self._fields(items, depth) or _text(value)
        return _text(value)

    def _fields(self, items: Iterable[tuple[Any, Any]], depth: int) -> dict[str, Any]:
        fields = {}
        for name, item in items:
            if self.left <= 0:
                fields[_OMITTED] = _OMITTED
                break
            fields[_text(name)] = self.plain(item, depth + 1)
        return fields

    def _sequence(self, items: Iterable[Any], depth: int) -> list[Any]:
        plain = []
        for item in items:
            plain.append(self.plain(item, depth + 1))
            if self.left <= 0:
                break
        return plain


def _text(value: Any) -> str:
    """A dictionary's key, or a value without a plain form."""
    match value:
        case values.Opaque():
            return str(value.kind)
        case str() | int() | float() | None | values.Global():
            return str(value)[:MAX_TEXT]
    return f"<{type(value).__name__}>"
