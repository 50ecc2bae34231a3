"""How an annotation file is written, told by its name and its first lines."""

import difflib
import functools
import logging
import re
from collections.abc import Sequence
from itertools import islice

from internvideo_jax.data.annotations.columns import TEXT_FORMATS, is_media, is_number, splitter
from internvideo_jax.data.annotations.entries import (
    FORMATS,
    Entry,
    EntryError,
    Format,
    is_name,
    quote,
)
from internvideo_jax.data.annotations.formats import Layout, line_parser, parsed
from internvideo_jax.data.annotations.lines import check_encoding, read_lines

_log = logging.getLogger(__name__)

SEPARATORS = (",", "\t", " ", ";")

# How many lines decide which format and separator a file has.
NUM_SAMPLED_LINES = 50

# Columns that a header may name, and the keys of jsonl that they stand for.
_FIELDS = (
    dict.fromkeys(("path", "video", "video_path", "file", "file_name", "filename"), "video")
    | dict.fromkeys(("label", "class", "class_name", "label_name", "category"), "label")
    | {key: key for key in ("caption", "start", "end", "id", "num_frames", "source")}
)


# More columns, or longer names, no header has.
_MAX_COLUMNS = 50
_MAX_NAME_LENGTH = 50


def tell_layout(
    path: str, format: Format | None, separator: str | None, frame_pattern: str
) -> Layout:
    """Finds out what is not given of how a file is written.

    The ending of the name decides for `.jsonl` and `.json`, the first lines for all others: they
    are taken to be in the format and with the separator that most of them fit, more than half.

    Raises:
      EntryError: no format fits, or several do, or the first line is a header of other columns.
    """
    check_encoding(path)
    numbered = list(islice(read_lines(path), NUM_SAMPLED_LINES))
    lines = [line for _, line in numbered if isinstance(line, str)]
    header = _find_header(lines, separator) if format in (None, "csv") else None
    if header is None:
        layout = Layout(*_tell_format(path, format, separator, numbered), frame_pattern)
        _refuse_other_header(layout, lines)
    else:
        mark, fields, unread = header
        layout = Layout("csv", mark, frame_pattern, fields)
        del lines[0]
        if unread:
            _say_unread(path, unread)
    if layout.format == "json":
        return layout
    parse = line_parser(layout)
    entries = [parsed(parse, line) for line in lines]
    labels = [e.label for e in entries if isinstance(e, Entry) and e.label not in (None, ())]
    return layout._replace(has_names=2 * sum(map(is_name, labels)) > len(labels))


def _find_header(
    lines: Sequence[str], separator: str | None
) -> tuple[str, tuple[str, ...], tuple[str, ...]] | None:
    """What a first line says that names the columns of a csv.

    Returns:
      The separator, the keys of jsonl that the columns stand for, "" for those that are not read,
      and the names of these. None if the line is none of that kind.

    Raises:
      EntryError: some of the names may mean what others are read as.
    """
    if not lines:
        return None

    def known(mark: str) -> list[str]:
        return [_FIELDS.get(name.lower(), "") for name in _columns(lines[0], mark)]

    marks = [separator] if separator else SEPARATORS
    mark = max(marks, key=lambda m: sum(map(bool, known(m))))
    names, fields = _columns(lines[0], mark), known(mark)
    is_data = any(is_number(name) or is_media(name) for name in names)
    expected = f"a header with columns of {', '.join(_FIELDS)}, one of them the path"
    if fields == ["video"] and len(lines) > 1:
        raise EntryError(expected, f"{quote(names[0])} alone; add a column label")
    if is_data or len(names) < 2 or not {"video", "label"} & set(fields):
        return None
    others = [name for name, field in zip(names, fields, strict=True) if not field]
    read = [field for field in fields if field]
    is_vague = len(read) < 2 or len(names) > _MAX_COLUMNS
    unclear = others if is_vague else list(filter(_is_unclear, others))
    if unclear:
        raise EntryError(expected, f"{quote(unclear[0])}; rename or remove that column")
    if len(set(read)) < len(read) or "video" not in read:
        raise EntryError(f"{expected}, each thing once", quote(lines[0]))
    return mark, tuple(fields), tuple(others)


def _is_unclear(name: str) -> bool:
    """Whether a column may mean what others are read as: a word of its name is (nearly) theirs."""
    if len(name) > _MAX_NAME_LENGTH:
        return True
    words = {word for field in _FIELDS for word in field.split("_")}
    return any(
        difflib.get_close_matches(word, words, n=1, cutoff=0.75)
        for word in re.split(r"[\W\d_]+", name.lower())
    )


@functools.lru_cache
def _say_unread(path: str, names: tuple[str, ...]) -> None:
    """Says once which columns of a file do not count."""
    _log.warning("%s: columns that are not read: %s; all lines are", path, ", ".join(names))


def _refuse_other_header(layout: Layout, lines: Sequence[str]) -> None:
    """Refuses a first line of words alone that does not fit the format as the others do."""
    if layout.format in TEXT_FORMATS and _is_wordy(lines):
        fits = [_fits(layout.format, layout.separator or " ", line) for line in lines]
        if not fits[0] and 2 * sum(fits) > len(fits[1:]):
            raise EntryError(
                f"clips, or a header with columns of {', '.join(_FIELDS)}",
                f"the first line {quote(lines[0])}; name the columns so, or remove it",
            )


def _is_wordy(lines: Sequence[str]) -> bool:
    """Whether the first of several lines has no digits, as headers have none."""
    return len(lines) > 1 and not any(map(str.isdigit, lines[0]))


def _tell_format(
    path: str,
    format: Format | None,
    separator: str | None,
    numbered: Sequence[tuple[int, str | EntryError]],
) -> tuple[Format, str | None]:
    suffix = path.lower().rpartition(".")[2]
    lines = [line for _, line in numbered if isinstance(line, str)]
    first = lines[0].lstrip() if lines else ""
    if format is None and (suffix in ("jsonl", "ndjson") or first.startswith("{")):
        format = "jsonl"
    elif format is None and (suffix == "json" or first.startswith("[")):
        format = "json"
    if format in ("json", "jsonl"):
        return format, None
    errors = [(line, entry) for line, entry in numbered if isinstance(entry, EntryError)]
    if not numbered:
        raise EntryError("at least one clip", "an empty file")
    formats = [format] if format else list(TEXT_FORMATS)
    separators = [separator] if separator else SEPARATORS
    if len(formats) == len(separators) == 1:
        return formats[0], separators[0]
    some = lines[1:] if _is_wordy(lines) else lines
    counts = {
        (name, mark): sum(_fits(name, mark, line) for line in some)
        for name in formats
        for mark in separators
    }
    best = max(counts.values())
    winners = [key for key, count in counts.items() if count == best]
    if 2 * best > len(some) + len(errors) and len({name for name, _ in winners}) == 1:
        return winners[0]
    if format:
        # Whatever the separator, the lines are wrong: one that occurs makes for better messages.
        return format, next((mark for mark in SEPARATORS if mark in first), " ")
    if errors:
        line, error = errors[0]
        raise EntryError(error.expected, f"{error.found} (line {line})")
    fitting = {line for line in some for name, mark in counts if _fits(name, mark, line)}
    example = next((line for line in lines if line not in fitting), first)
    raise EntryError(
        f"a format that can be told ({', '.join(FORMATS)}); name it with --format (format=...)",
        f"lines such as {quote(example)}",
    )


def _fits(format: Format, separator: str, line: str) -> bool:
    return TEXT_FORMATS[format].fits(_columns(line, separator))


def _columns(line: str, separator: str) -> list[str]:
    """The columns of a line; none if its quotes are wrong."""
    try:
        return splitter(separator)(line)
    except EntryError:
        return []
