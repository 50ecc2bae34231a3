"""What an annotation file states about a clip, in whichever format, and what is wrong with it."""

import re
from collections.abc import Collection
from typing import Literal

import msgspec

from internvideo_jax.config import nearest_name

Format = Literal["jsonl", "csv", "interval", "frames", "pretrain", "json"]

FORMATS: tuple[Format, ...] = ("jsonl", "csv", "interval", "frames", "pretrain", "json")

FRAME_PATTERN = "img_{:05}.jpg"

# A file name with one place for a number: what else `str.format` can do is not for data to ask.
_FRAME_PATTERN = re.compile(r"[^/\\{}\x00]*\{(:0?\d{0,2}d?)?\}[^/\\{}\x00]*")

# Longer texts, in characters, are no misspelt names.
_MAX_MISSPELT = 100

# Classes by number or by name; some clips have several.
Labels = int | str | tuple[int | str, ...] | None


class Entry(msgspec.Struct, array_like=True, gc=False):
    """What a file states about one clip: the fields of `ClipRecord`, the path as written.

    Attributes:
      line: where the entry begins, from 1.
    """

    path: str
    label: Labels = None
    start: float | None = None
    end: float | None = None
    captions: tuple[str, ...] = ()
    id: str | None = None
    num_frames: int | None = None
    frame_pattern: str | None = None
    source: str = ""
    caption_names: tuple[str, ...] = ()
    line: int = 0


class EntryError(Exception):
    """One entry of an annotation file that is wrong: what was expected and what was found.

    Args:
      expected: the former.
      found: the latter.
      name: where it is a name that is none of `names`.
      names: those.
    """

    def __init__(self, expected: str, found: str, name: str = "", names: Collection[str] = ()):
        super().__init__(expected, found)
        self.expected = expected
        self.found = found
        self._name, self._names = name, names

    def suggestion(self) -> str:
        """The ending of a message that suggests one of the names, or nothing. Takes long."""
        if not 0 < len(self._name) <= _MAX_MISSPELT:
            return ""
        return nearest_name(self._name, sorted(self._names))


def quote(value: object) -> str:
    """A value as messages show it: one short line."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def is_name(label: Labels) -> bool:
    """Whether a label, or the first of several, is the name of a class."""
    return isinstance(label[0] if isinstance(label, tuple) and label else label, str)


def check_frame_pattern(pattern: str) -> None:
    """Refuses what is no name of images with one place for their number.

    Raises:
      EntryError: such a pattern.
    """
    if _FRAME_PATTERN.fullmatch(pattern) is None:
        raise EntryError(
            f'names of images such as "{FRAME_PATTERN}", with one place for the number',
            quote(pattern),
        )
