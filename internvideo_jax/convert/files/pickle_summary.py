"""What a checkpoint says besides its weights, as plain JSON-ready data of bounded size."""

import itertools
from collections.abc import Iterable
from typing import Any

from internvideo_jax.convert.files import pickle_values as values

# Values of one entry that are kept: plenty for arguments, little of an optimizer's state.
MAX_VALUES = 5_000
MAX_DEPTH = 12
MAX_TEXT = 10_000
# Entries of a file that are kept, and values and characters of all of them.
MAX_ENTRIES = 100
MAX_ALL_VALUES = 20_000
MAX_ALL_TEXT = 1_000_000

_OMITTED = "..."


def summarize(entries: Iterable[tuple[Any, Any]]) -> dict[str, Any]:
    """Returns what the pickle reader read as dicts with string keys, lists, strings and numbers.

    Objects become a dict of their fields; names and values without a plain form become a short
    text. What is too long, too deep, or refers to itself ends in "...".

    Args:
      entries: names and values of a file.
    """
    summary = _Summary()
    return {
        summary.text(name): summary.entry(value)
        for name, value in itertools.islice(entries, MAX_ENTRIES)
    }


class _Summary:
    """What is left of the limits, which hold for all entries of a file together."""

    def __init__(self) -> None:
        self.left = 0
        self.values = MAX_ALL_VALUES
        self.characters = MAX_ALL_TEXT

    def entry(self, value: Any) -> Any:
        self.left = MAX_VALUES
        return self.plain(value, 0)

    def text(self, value: Any) -> str:
        """A text, or a short one for a key or value without a plain form."""
        match value:
            case str():
                text = value[: MAX_TEXT + 1]
            case bool() | int() | float() | None | values.Opaque() | values.Global():
                text = _scalar(value)
            case _:
                text = f"<{type(value).__name__}>"
        room = min(MAX_TEXT, self.characters)
        self.characters -= min(len(text), room)
        return text if len(text) <= room else text[:room] + _OMITTED

    def plain(self, value: Any, depth: int) -> Any:
        self.left -= 1
        self.values -= 1
        if min(self.left, self.values) < 0 or depth > MAX_DEPTH:
            return _OMITTED
        match value:
            case None | bool() | float():
                return value
            case int():
                return value if value.bit_length() <= 64 else _OMITTED
            case str() | values.Global() | values.Storage():
                return self.text(value)
            case dict():
                return self._fields(value.items(), depth)
            case list() | tuple() | set() | frozenset():
                return self._sequence(value, depth)
            case values.Opaque(elements=[_, *_]):
                return self._sequence(value.elements, depth)
            case values.Opaque():
                state = value.state if isinstance(value.state, dict) else {}
                items = itertools.chain(state.items(), value.items.items())
                return self._fields(items, depth) or self.text(value)
        return self.text(value)

    def _fields(self, items: Iterable[tuple[Any, Any]], depth: int) -> dict[str, Any]:
        fields = {}
        for name, item in items:
            if self.left <= 0 or self.values <= 0:
                fields[_OMITTED] = _OMITTED
                break
            fields[self.text(name)] = self.plain(item, depth + 1)
        return fields

    def _sequence(self, items: Iterable[Any], depth: int) -> list[Any]:
        plain = []
        for item in items:
            plain.append(self.plain(item, depth + 1))
            if self.left <= 0 or self.values <= 0:
                break
        return plain


def _scalar(value: Any) -> str:
    if isinstance(value, values.Opaque):
        return str(value.kind)
    if isinstance(value, int) and value.bit_length() > 64:
        return _OMITTED
    return str(value)
