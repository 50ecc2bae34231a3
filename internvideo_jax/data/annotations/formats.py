"""The formats of annotation files: what each entry states about a clip.

Source: the data sets of upstream's `InternVideo2/single_modality/datasets` (`csv`, `interval`,
`frames`, `pretrain`) and `InternVideo2/multi_modality/dataset` (`json`); `jsonl` is our own.
"""

import csv
import math
import re
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Any, Literal, NamedTuple

from internvideo_jax.config import nearest_name
from internvideo_jax.data.annotations.lines import (
    EntryError,
    parse_json,
    quote,
    read_items,
    read_lines,
)
from internvideo_jax.data.decode.paths import AUDIO_EXTENSIONS, VIDEO_EXTENSIONS

Format = Literal["jsonl", "csv", "interval", "frames", "pretrain", "json"]
FORMATS: tuple[Format, ...] = ("jsonl", "csv", "interval", "frames", "pretrain", "json")

FRAME_PATTERN = "img_{:05}.jpg"

SEPARATORS = (",", "\t", " ")
# How many lines decide which format and separator a file has.
NUM_SAMPLED_LINES = 50
# A file name with one place for a number: what else `str.format` can do is not for data to ask.
_FRAME_PATTERN = re.compile(r"[^/\\{}\x00]*\{(:0?\d{0,2}d?)?\}[^/\\{}\x00]*")


class Entry(NamedTuple):
    """What a file states about one clip: the fields of `ClipRecord`, the path as written."""

    path: str
    label: int | tuple[int, ...] | None = None
    start: float | None = None
    end: float | None = None
    captions: tuple[str, ...] = ()
    id: str | None = None
    num_frames: int | None = None
    frame_pattern: str | None = None
    source: str = ""


class Layout(NamedTuple):
    """How an annotation file is written.

    Attributes:
      format: one of `FORMATS`.
      separator: between the columns of text formats; else None.
      frame_pattern: names of the images, for `frames`.
    """

    format: Format
    separator: str | None = None
    frame_pattern: str = FRAME_PATTERN


def line_parser(layout: Layout) -> Callable[[str], Entry]:
    """What makes an entry of a line, in all formats but `json`; raises `EntryError`."""
    if layout.format == "jsonl":
        return lambda line: _jsonl_entry(parse_json(line))
    split, parse = splitter(layout.separator or " "), TEXT_FORMATS[layout.format].parse
    if layout.format == "frames":
        return lambda line: parse(split(line))._replace(frame_pattern=layout.frame_pattern)
    return lambda line: parse(split(line))


def read_list(path: str) -> Iterator[tuple[int, Entry | EntryError]]:
    """The entries of a file in the format `json`, with the lines that they begin on."""
    for number, item in read_items(path):
        try:
            yield number, item if isinstance(item, EntryError) else _stage2_entry(item)
        except EntryError as error:
            yield number, error


def tell_format(
    path: str, format: Format | None, separator: str | None
) -> tuple[Format, str | None]:
    """Finds out what is not given of a file's format and separator.

    The ending of the name decides for `.jsonl` and `.json`, the first lines for all others: they
    are taken to be in the format and with the separator that most of them fit, more than half.

    Raises:
      EntryError: no format fits, or several do.
    """
    suffix = path.lower().rpartition(".")[2]
    sampled = [line for _, line in islice(read_lines(path), NUM_SAMPLED_LINES)]
    lines = [line for line in sampled if isinstance(line, str)]
    first = lines[0] if lines else ""
    if format is None and (suffix in ("jsonl", "ndjson") or first.startswith("{")):
        format = "jsonl"
    elif format is None and (suffix == "json" or first.startswith("[")):
        format = "json"
    if format in ("json", "jsonl"):
        return format, None
    errors = [entry for entry in sampled if isinstance(entry, EntryError)]
    if not sampled:
        raise EntryError("at least one clip", "an empty file")
    formats = [format] if format else list(TEXT_FORMATS)
    separators = [separator] if separator else SEPARATORS
    if len(formats) == len(separators) == 1:
        return formats[0], separators[0]
    counts = {
        (name, mark): sum(
            TEXT_FORMATS[name].fits(columns) for columns in map(splitter(mark), lines)
        )
        for name in formats
        for mark in separators
    }
    best = max(counts.values())
    winners = [key for key, count in counts.items() if count == best]
    if 2 * best > len(sampled) and len({name for name, _ in winners}) == 1:
        return winners[0]
    if format:
        # Whatever the separator, the lines are wrong: one that occurs makes for better messages.
        return format, next((mark for mark in SEPARATORS if mark in first), " ")
    if errors:
        raise errors[0]
    fitting = {
        line
        for line in lines
        for name, mark in counts
        if TEXT_FORMATS[name].fits(splitter(mark)(line))
    }
    example = next((line for line in lines if line not in fitting), first)
    raise EntryError(
        f"a format that can be told ({', '.join(FORMATS)}); name it with --format (format=...)",
        f"lines such as {quote(example)}",
    )


def is_frame_pattern(pattern: str) -> bool:
    """Whether these are names of images with one place for their number."""
    return _FRAME_PATTERN.fullmatch(pattern) is not None


def check_frame_pattern(pattern: str) -> None:
    """Refuses what is no name of images with one place for their number.

    Raises:
      EntryError: such a pattern.
    """
    if not is_frame_pattern(pattern):
        raise EntryError(
            f'names of images such as "{FRAME_PATTERN}", with one place for the number',
            quote(pattern),
        )


def splitter(separator: str) -> Callable[[str], list[str]]:
    """Splits a line into columns: as CSV where there are quotes, several spaces count as one."""

    def split(line: str) -> list[str]:
        if '"' in line:
            rows = csv.reader([line], delimiter=separator, skipinitialspace=True)
            return next(rows, [])
        if separator == " ":
            return line.split()
        return [column.strip() for column in line.split(separator)]

    return split


def _csv_entry(columns: Sequence[str]) -> Entry:
    path, label = _exactly(columns, "path, label")
    return Entry(path, _index(label))


def _interval_entry(columns: Sequence[str]) -> Entry:
    path, total, start, end, label = _exactly(columns, "path, total time, start, end, label")
    return Entry(path, _index(label), *_interval(total, start, end))


def _pretrain_entry(columns: Sequence[str]) -> Entry:
    source, path, total, start, end, label = _exactly(
        columns, "source, path, total time, start, end, label"
    )
    # Pre-training has no use for labels, and lists without them hold -1.
    known = None if label == "-1" else _index(label)
    return Entry(path, known, *_interval(total, start, end), source=source)


def _frames_entry(columns: Sequence[str]) -> Entry:
    if len(columns) < 3:
        raise EntryError(
            "at least 3 columns (folder, number of frames, ..., label)", _count(columns)
        )
    num_frames = _index(columns[1], "a number of frames")
    return Entry(columns[0], _index(columns[-1]), num_frames=num_frames)


def _exactly(columns: Sequence[str], names: str) -> Sequence[str]:
    expected = names.count(",") + 1
    if len(columns) != expected:
        advice = "; put paths with the separator in them in double quotes"
        found = _count(columns) + advice * (len(columns) > expected)
        raise EntryError(f"{expected} columns ({names})", found)
    return columns


def _count(columns: Sequence[str]) -> str:
    return f"{len(columns)}: {quote(list(columns))}"


def _index(text: str, what: str = "a label") -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 10):
        is_word = text != "" and not any(map(str.isdigit, text))
        advice = "; remove the line if it is a header" * is_word
        raise EntryError(f"{what}: an integer from 0", quote(text) + advice)
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


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def _is_index(text: str) -> bool:
    return text.isascii() and text.isdigit()


def _is_media(text: str) -> bool:
    return text.lower().endswith((*VIDEO_EXTENSIONS, *AUDIO_EXTENSIONS))


class _TextFormat(NamedTuple):
    parse: Callable[[Sequence[str]], Entry]
    fits: Callable[[Sequence[str]], bool]


# Numbers of columns tell these formats apart, and endings of paths where those are the same.
TEXT_FORMATS: dict[Format, _TextFormat] = {
    "csv": _TextFormat(_csv_entry, lambda c: len(c) == 2 and _is_index(c[1])),
    "interval": _TextFormat(
        _interval_entry, lambda c: len(c) == 5 and _is_media(c[0]) and all(map(_is_number, c[1:]))
    ),
    "frames": _TextFormat(
        _frames_entry,
        lambda c: len(c) > 2 and not _is_media(c[0]) and _is_index(c[1]) and _is_index(c[-1]),
    ),
    "pretrain": _TextFormat(
        _pretrain_entry, lambda c: len(c) == 6 and _is_media(c[1]) and all(map(_is_number, c[2:]))
    ),
}

_JSONL_KEYS = frozenset(
    (
        *("video", "audio", "label", "caption", "start", "end", "id"),
        *("num_frames", "frame_pattern", "source"),
    )
)


def _jsonl_entry(value: Any) -> Entry:
    fields = _object(value)
    if not _JSONL_KEYS.issuperset(fields):
        name = min(fields.keys() - _JSONL_KEYS)
        known = sorted(_JSONL_KEYS)
        raise EntryError(
            f"the keys {', '.join(known)}", f"{quote(name)}{nearest_name(name, known)}"
        )
    num_frames = fields.get("num_frames")
    pattern = _text(fields, "frame_pattern", None) if "frame_pattern" in fields else None
    if num_frames is not None and not _is_natural(num_frames):
        raise EntryError('"num_frames": an integer', quote(num_frames))
    if num_frames is None and pattern is not None:
        raise EntryError('"num_frames" beside "frame_pattern"', "none")
    if num_frames is not None and pattern is None:
        pattern = FRAME_PATTERN
    return Entry(
        path=_json_path(fields, ("video", "audio")),
        label=_json_label(fields.get("label")),
        start=_json_seconds(fields, "start"),
        end=_json_seconds(fields, "end"),
        captions=_json_captions(fields, ("caption",)),
        id=_text(fields, "id", None) if "id" in fields else None,
        num_frames=num_frames,
        frame_pattern=pattern,
        source=_text(fields, "source", ""),
    )


def _stage2_entry(value: Any) -> Entry:
    fields = _object(value)
    path = _json_path(fields, ("video", "image", "audio"))
    if numbers := [key for key in ("video_start_frame", "video_end_frame") if key in fields]:
        raise EntryError('"start" and "end" in seconds, as jsonl has them', quote(numbers[0]))
    return Entry(path, captions=_json_captions(fields, ("caption", "captions")))


def _object(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise EntryError("a JSON object", quote(value))
    return value


def _json_path(fields: dict[str, Any], keys: Sequence[str]) -> str:
    found = [key for key in keys if key in fields]
    if len(found) != 1:
        expected = " or ".join(f'"{key}"' for key in keys)
        raise EntryError(f"a key {expected}", f"the keys {quote(list(fields))}")
    path = _text(fields, found[0], None)
    if found == ["audio"] and not path.lower().endswith(AUDIO_EXTENSIONS):
        raise EntryError(f'"audio": a file of sound ({", ".join(AUDIO_EXTENSIONS)})', quote(path))
    return path


def _text(fields: dict[str, Any], key: str, default: str | None) -> str:
    value = fields.get(key, default)
    if value is None:
        raise EntryError(f'a key "{key}"', f"the keys {quote(list(fields))}")
    if not _is_text(value):
        raise EntryError(f'"{key}": a string of Unicode text', quote(value))
    return str(value)


def _is_text(value: Any) -> bool:
    """Whether a JSON value is a string that can be written: escapes may name half a character."""
    if not isinstance(value, str) or value.isascii():
        return isinstance(value, str)
    return not any("\ud800" <= character <= "\udfff" for character in value)


def _is_natural(value: Any) -> bool:
    # In Python, true and false are integers.
    return type(value) is int and 0 <= value < 2**31


def _json_label(value: Any) -> int | tuple[int, ...] | None:
    if value is None or _is_natural(value):
        return value
    if isinstance(value, list) and all(map(_is_natural, value)) and len(set(value)) == len(value):
        return tuple(value)
    raise EntryError('"label": an integer from 0, or a list of different ones', quote(value))


def _json_seconds(fields: dict[str, Any], key: str) -> float | None:
    value = fields.get(key)
    if value is None:
        return None
    try:
        if type(value) in (int, float):
            return float(value)
    except OverflowError:
        pass
    raise EntryError(f'"{key}": seconds', quote(value))


def _json_captions(fields: dict[str, Any], keys: Sequence[str]) -> tuple[str, ...]:
    for key in keys:
        value = fields.get(key)
        if value is None:
            continue
        captions = [value] if isinstance(value, str) else value
        if not isinstance(captions, list) or not all(map(_is_text, captions)):
            raise EntryError(f'"{key}": a string, or a list of strings', quote(value))
        return tuple(captions)
    return ()
