"""Entries of lines of text with columns.

Source: the data sets of upstream's `InternVideo2/single_modality/datasets`.
"""

import csv
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

from internvideo_jax.data.annotations.entries import Entry, EntryError, Format, quote
from internvideo_jax.data.annotations.json_entries import jsonl_entry
from internvideo_jax.data.decode.paths import AUDIO_EXTENSIONS, VIDEO_EXTENSIONS


def splitter(separator: str) -> Callable[[str], list[str]]:
    """Splits a line into columns: as CSV where there are quotes, several spaces count as one.

    Blanks around a column do not belong to it. What it returns raises EntryError for wrong quotes.
    """

    def split(line: str) -> list[str]:
        if '"' in line:
            rows = csv.reader([line], delimiter=separator, skipinitialspace=True)
            try:
                columns = next(rows, [])
            except csv.Error as error:
                raise EntryError("columns with quotes as in CSV", str(error)) from None
            # Blanks after a closing quote, before the separator.
            return list(map(str.strip, columns))
        if separator == " ":
            return line.split()
        return list(map(str.strip, line.split(separator)))

    return split


def headed_entry(header: Sequence[str], columns: Sequence[str]) -> Entry:
    """The entry of a line of a csv with a header.

    Args:
      header: keys of jsonl that the columns stand for; "" for those that are not read.
      columns: of the line.

    Raises:
      EntryError: the line is wrong.
    """
    names = ", ".join(field or "..." for field in header)
    values = zip(header, _exactly(columns, len(header), names), strict=True)
    stated = {field: value for field, value in values if field and value}
    label, num_frames = stated.get("label"), stated.get("num_frames")
    start, end = (_seconds(stated[name]) if name in stated else None for name in ("start", "end"))
    return jsonl_entry(
        stated.get("video"),
        None,
        None if label is None else _label(label),
        stated.get("caption"),
        start,
        end,
        stated.get("id"),
        None if num_frames is None else _index(num_frames, "a number of frames"),
        None,
        stated.get("source"),
    )


def _csv_entry(columns: Sequence[str]) -> Entry:
    path, label = _exactly(columns, 2, "path, label")
    return Entry(path, _label(label))


def _interval_entry(columns: Sequence[str]) -> Entry:
    path, total, start, end, label = _exactly(columns, 5, "path, total time, start, end, label")
    return Entry(path, _label(label), *_interval(total, start, end))


def _pretrain_entry(columns: Sequence[str]) -> Entry:
    source, path, total, start, end, label = _exactly(
        columns, 6, "source, path, total time, start, end, label"
    )
    # Pre-training has no use for labels, and lists without them hold -1.
    known = None if label == "-1" else _label(label)
    return Entry(path, known, *_interval(total, start, end), source=source)


def _frames_entry(columns: Sequence[str]) -> Entry:
    if len(columns) != 3:
        advice = "; jsonl holds several labels, other columns have no place" * (len(columns) > 3)
        raise EntryError("3 columns (folder, number of frames, label)", _count(columns) + advice)
    num_frames = _index(columns[1], "a number of frames")
    return Entry(columns[0], _label(columns[2]), num_frames=num_frames)


def _exactly(columns: Sequence[str], expected: int, names: str) -> Sequence[str]:
    if len(columns) != expected:
        advice = "; put paths with the separator in them in double quotes"
        found = _count(columns) + advice * (len(columns) > expected)
        raise EntryError(f"{expected} columns ({names})", found)
    return columns


def _count(columns: Sequence[str]) -> str:
    return f"{len(columns)}: {quote(list(columns))}"


def _label(text: str) -> int | str:
    """The number or the name of a class; what is nearly a number is neither."""
    return text if _is_word(text) else _index(text, "a label")


def _index(text: str, what: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 10):
        raise EntryError(f"{what}: an integer from 0", quote(text))
    return int(text)


def _interval(total: str, start: str, end: str) -> tuple[float | None, float | None]:
    """Seconds of a clip in a file of `total` seconds; -1 twice is the whole file."""
    seconds = _seconds(total), _seconds(start), _seconds(end)
    if seconds[1:] == (-1, -1):
        return None, None
    if 0 < seconds[0] <= seconds[1]:
        raise EntryError(f"a start before the end of the file, {total} s", f"{start} s")
    return seconds[1:]


def _seconds(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise EntryError("seconds", quote(text)) from None


def is_number(text: str) -> bool:
    """Whether a text is a finite number."""
    return _as_float(text) is not None and math.isfinite(float(text))


def _is_word(text: str) -> bool:
    """Whether a text may be a name: with some letter, and no number, not even NaN."""
    return any(map(str.isalpha, text)) and _as_float(text) is None


def _as_float(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _is_label(text: str) -> bool:
    return _is_index(text) or _is_word(text)


def _is_index(text: str) -> bool:
    return text.isascii() and text.isdigit()


def is_media(text: str) -> bool:
    """Whether a text ends like a file of video or sound."""
    return text.lower().endswith((*VIDEO_EXTENSIONS, *AUDIO_EXTENSIONS))


class TextFormat(NamedTuple):
    """A format of lines with columns.

    Attributes:
      parse: makes an entry of the columns of a line; raises EntryError for wrong ones.
      fits: whether they look as those of this format do.
    """

    parse: Callable[[Sequence[str]], Entry]
    fits: Callable[[Sequence[str]], bool]


# Numbers of columns tell these formats apart, and endings of paths where those are the same.
TEXT_FORMATS: dict[Format, TextFormat] = {
    "csv": TextFormat(
        _csv_entry,
        lambda c: len(c) == 2 and (_is_index(c[1]) or (is_media(c[0]) and _is_word(c[1]))),
    ),
    "interval": TextFormat(
        _interval_entry,
        lambda c: (
            len(c) == 5 and is_media(c[0]) and all(map(is_number, c[1:4])) and _is_label(c[4])
        ),
    ),
    # More columns fit, to be refused one by one: no other format has them.
    "frames": TextFormat(
        _frames_entry,
        lambda c: len(c) > 2 and not is_media(c[0]) and _is_index(c[1]) and _is_label(c[-1]),
    ),
    "pretrain": TextFormat(
        _pretrain_entry,
        lambda c: (
            len(c) == 6
            and is_media(c[1])
            and all(map(is_number, c[2:5]))
            and (_is_label(c[5]) or c[5] == "-1")
        ),
    ),
}
