"""The formats of annotation files: what each entry states about a clip.

Source: the data sets of upstream's `InternVideo2/single_modality/datasets` (`csv`, `interval`,
`frames`, `pretrain`) and `InternVideo2/multi_modality/dataset` (`json`); `jsonl` is our own.
"""

import csv
import functools
import itertools
import math
import re
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Annotated, Any, Literal, NamedTuple, TypeVar

import msgspec

from internvideo_jax.data.annotations.lines import (
    EntryError,
    check_encoding,
    parse_json,
    quote,
    read_blocks,
    read_items,
    split_lines,
)
from internvideo_jax.data.decode.paths import AUDIO_EXTENSIONS, VIDEO_EXTENSIONS

Format = Literal["jsonl", "csv", "interval", "frames", "pretrain", "json"]
FORMATS: tuple[Format, ...] = ("jsonl", "csv", "interval", "frames", "pretrain", "json")

FRAME_PATTERN = "img_{:05}.jpg"

SEPARATORS = (",", "\t", " ", ";")
# How many lines decide which format and separator a file has.
NUM_SAMPLED_LINES = 50
_LIST_ITEMS = 1024
# Columns that a header may name, and the keys of jsonl that they stand for.
_FIELDS = (
    dict.fromkeys(("path", "video", "video_path", "file", "file_name", "filename"), "video")
    | dict.fromkeys(("label", "class", "class_name", "label_name", "category"), "label")
    | {key: key for key in ("caption", "start", "end", "id", "num_frames", "source")}
)

# A file name with one place for a number: what else `str.format` can do is not for data to ask.
_FRAME_PATTERN = re.compile(r"[^/\\{}\x00]*\{(:0?\d{0,2}d?)?\}[^/\\{}\x00]*")


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


class Layout(NamedTuple):
    """How an annotation file is written.

    Attributes:
      format: one of `FORMATS`.
      separator: between the columns of text formats; else None.
      frame_pattern: names of the images, for `frames`.
      header: fields of `Entry` in the columns of a `csv` whose first line names them; else None.
      has_names: whether labels are names of classes, not their numbers.
    """

    format: Format
    separator: str | None = None
    frame_pattern: str = FRAME_PATTERN
    header: tuple[str, ...] | None = None
    has_names: bool = False


def read_entries(path: str, layout: Layout) -> Iterator[Sequence[tuple[int, Entry | EntryError]]]:
    """The entries of a file, right or wrong, many at a time, with the lines that they begin on."""
    if layout.format == "json":
        items = read_items(path)
        while some := list(islice(items, _LIST_ITEMS)):
            yield [(number, _parsed(_stage2_entry, item)) for number, item in some]
        return
    parse = _line_parser(layout)
    is_header = layout.header is not None
    for number, block in read_blocks(path):
        entries = _plain_jsonl_entries(block) if layout.format == "jsonl" else None
        if entries is not None:
            yield list(enumerate(entries, number))
        else:
            lines = list(split_lines(number, block))
            if is_header and lines:
                is_header = False
                del lines[0]
            yield [(line, _parsed(parse, text)) for line, text in lines]


def _parsed(parse: Callable[[Any], Entry], item: Any) -> Entry | EntryError:
    try:
        return item if isinstance(item, EntryError) else parse(item)
    except EntryError as error:
        return error


def _line_parser(layout: Layout) -> Callable[[str], Entry]:
    if layout.format == "jsonl":
        return _parse_jsonl
    split, parse = splitter(layout.separator or " "), TEXT_FORMATS[layout.format].parse
    if layout.header is not None:
        parse = functools.partial(_headed_entry, layout.header)
    if layout.format != "frames":
        return lambda line: parse(split(line))

    def with_pattern(line: str) -> Entry:
        entry = parse(split(line))
        entry.frame_pattern = layout.frame_pattern
        return entry

    return with_pattern


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
    texts = itertools.chain.from_iterable(itertools.starmap(split_lines, read_blocks(path)))
    numbered = list(islice(texts, NUM_SAMPLED_LINES))
    lines = [line for _, line in numbered if isinstance(line, str)]
    header = _find_header(lines, separator) if format in (None, "csv") else None
    if header is None:
        layout = Layout(*_tell_format(path, format, separator, numbered), frame_pattern)
        _refuse_other_header(layout, lines)
    else:
        layout = Layout("csv", header[0], frame_pattern, header[1])
        del lines[0]
    if layout.format == "json":
        return layout
    parse = _line_parser(layout)
    entries = [_parsed(parse, line) for line in lines]
    labels = [e.label for e in entries if isinstance(e, Entry) and e.label not in (None, ())]
    return layout._replace(has_names=2 * sum(map(is_name, labels)) > len(labels))


def is_name(label: Labels) -> bool:
    """Whether a label, or the first of several, is the name of a class."""
    return isinstance(label[0] if isinstance(label, tuple) and label else label, str)


def _find_header(lines: Sequence[str], separator: str | None) -> tuple[str, tuple[str, ...]] | None:
    """The separator and the fields of `Entry` of a first line that names the columns of a csv.

    Raises:
      EntryError: some of the names are not known.
    """
    if not lines:
        return None

    def known(mark: str) -> list[str | None]:
        return [_FIELDS.get(name.lower()) for name in _columns(lines[0], mark)]

    marks = [separator] if separator else SEPARATORS
    mark = max(marks, key=lambda m: sum(1 if field else -1 for field in known(m)))
    names, fields = _columns(lines[0], mark), known(mark)
    is_data = any(_is_number(name) or _is_media(name) for name in names)
    if is_data or len(names) < 2 or not {"video", "label"} & set(fields):
        return None
    expected = f"a header with columns of {', '.join(_FIELDS)}, one of them the path"
    unknown = [name for name, field in zip(names, fields, strict=True) if field is None]
    if unknown:
        raise EntryError(expected, f"{quote(unknown[0])}; rename or remove that column")
    if len(set(fields)) < len(fields) or "video" not in fields:
        raise EntryError(f"{expected}, each thing once", quote(lines[0]))
    return mark, tuple(map(str, fields))


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


def _headed_entry(header: Sequence[str], columns: Sequence[str]) -> Entry:
    values = zip(header, _exactly(columns, len(header), ", ".join(header)), strict=True)
    stated = {field: value for field, value in values if value}
    label, num_frames = stated.get("label"), stated.get("num_frames")
    start, end = (_seconds(stated[name]) if name in stated else None for name in ("start", "end"))
    return _jsonl_entry(
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


def _is_number(text: str) -> bool:
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


def _is_media(text: str) -> bool:
    return text.lower().endswith((*VIDEO_EXTENSIONS, *AUDIO_EXTENSIONS))


class _TextFormat(NamedTuple):
    parse: Callable[[Sequence[str]], Entry]
    fits: Callable[[Sequence[str]], bool]


# Numbers of columns tell these formats apart, and endings of paths where those are the same.
TEXT_FORMATS: dict[Format, _TextFormat] = {
    "csv": _TextFormat(
        _csv_entry,
        lambda c: len(c) == 2 and (_is_index(c[1]) or (_is_media(c[0]) and _is_word(c[1]))),
    ),
    "interval": _TextFormat(
        _interval_entry,
        lambda c: (
            len(c) == 5 and _is_media(c[0]) and all(map(_is_number, c[1:4])) and _is_label(c[4])
        ),
    ),
    # More columns fit, to be refused one by one: no other format has them.
    "frames": _TextFormat(
        _frames_entry,
        lambda c: len(c) > 2 and not _is_media(c[0]) and _is_index(c[1]) and _is_label(c[-1]),
    ),
    "pretrain": _TextFormat(
        _pretrain_entry,
        lambda c: (
            len(c) == 6
            and _is_media(c[1])
            and all(map(_is_number, c[2:5]))
            and (_is_label(c[5]) or c[5] == "-1")
        ),
    ),
}

# msgspec refuses numbers of other kinds: true and 1.0 are none.
_Index = Annotated[int, msgspec.Meta(ge=0, lt=2**31)]
_Texts = str | list[str]
# Captions, or captions by their names.
_Captions = _Texts | dict[str, _Texts] | None


class _JsonLine(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    """A line of the format jsonl; null stands for nothing."""

    video: str | None = None
    audio: str | None = None
    label: _Index | str | list[_Index | str] | None = None
    caption: _Captions = None
    start: float | None = None
    end: float | None = None
    id: str | None = None
    num_frames: _Index | None = None
    frame_pattern: str | None = None
    source: str | None = None


class _Stage2Item(msgspec.Struct):
    """An item of the format json; has other keys as well."""

    video: str | None = None
    image: str | None = None
    audio: str | None = None
    caption: _Texts | None = None
    captions: _Texts | None = None
    video_start_frame: Any = None
    video_end_frame: Any = None


_EXPECTED = {
    "label": "an integer from 0 or the name of a class, or a list of different ones",
    "caption": "a string, a list of strings, or an object with these by name",
    "captions": "a string, or a list of strings",
    "start": "seconds",
    "end": "seconds",
    "num_frames": "an integer",
}
_DECODER = msgspec.json.Decoder(_JsonLine)


def _plain_jsonl_entries(block: bytes) -> list[Entry] | None:
    """The entries of lines that have nothing unusual; of others, None."""
    num_lines = block.count(b"\n")
    # The decoder would take several objects on a line, or one on several; texts have no line ends.
    if not block.startswith(b"{") or block.count(b"\n{") != num_lines - 1:
        return None
    try:
        objects = _DECODER.decode_lines(block)
        stated = list(map(msgspec.structs.astuple, objects))
        # Of equal keys, it would take the last. Quotes within texts are escaped.
        num_keys = sum(len(values) - values.count(None) for values in stated)
        if len(objects) != num_lines or block.count(b'":') - block.count(b'\\":') != num_keys:
            return None
        return list(itertools.starmap(_jsonl_entry, stated))
    except (msgspec.DecodeError, UnicodeDecodeError, EntryError):
        return None


def _parse_jsonl(line: str) -> Entry:
    return _jsonl_entry(*msgspec.structs.astuple(_convert(parse_json(line), _JsonLine)))


def _jsonl_entry(
    video: str | None,
    audio: str | None,
    label: int | str | list[int | str] | None,
    caption: _Captions,
    start: float | None,
    end: float | None,
    id: str | None,
    num_frames: int | None,
    frame_pattern: str | None,
    source: str | None,
) -> Entry:
    path = video if audio is None and video is not None else _only(video=video, audio=audio)
    if isinstance(label, list) and (len(set(label)) < len(label) or len(set(map(type, label))) > 1):
        raise EntryError(f'"label": {_EXPECTED["label"]}', quote(label))
    if id == "":
        raise EntryError('"id": a string that is not empty', quote(id))
    if audio is not None and num_frames is not None:
        raise EntryError('no "num_frames" beside "audio"', quote(num_frames))
    labels = tuple(label) if isinstance(label, list) else label
    if num_frames is None and frame_pattern is not None:
        raise EntryError('"num_frames" beside "frame_pattern"', "none")
    if num_frames is not None and frame_pattern is None:
        frame_pattern = FRAME_PATTERN
    captions, names = _captions(caption)
    return Entry(
        *(path, labels, start, end, captions, id, num_frames, frame_pattern, source or "", names)
    )


def _stage2_entry(value: Any) -> Entry:
    item = _convert(value, _Stage2Item)
    path = _only(video=item.video, image=item.image, audio=item.audio)
    if item.video_start_frame is not None or item.video_end_frame is not None:
        raise EntryError('"start" and "end" in seconds, as jsonl has them', "numbers of frames")
    unnamed = item.captions if item.caption is None else item.caption
    named = {key: texts for key, texts in value.items() if _names_captions(key, texts)}
    captions, names = _captions({"": unnamed or [], **named} if named else unnamed)
    return Entry(path, captions=captions, caption_names=names)


def _names_captions(key: str, value: Any) -> bool:
    """Whether a key of the format json, such as `audio_captions`, has captions under its name."""
    if "caption" not in key or key in ("caption", "captions"):
        return False
    is_list = isinstance(value, list) and all(isinstance(text, str) for text in value)
    return is_list or isinstance(value, str)


_Json = TypeVar("_Json", bound=msgspec.Struct)


def _convert(value: Any, kind: type[_Json]) -> _Json:
    """What a JSON object states.

    Raises:
      EntryError: it does not fit.
    """
    if not isinstance(value, dict):
        raise EntryError("a JSON object", quote(value))
    try:
        known = msgspec.convert(value, kind)
        # Escapes may name half a character.
        msgspec.msgpack.encode(known)
    except UnicodeEncodeError as error:
        raise EntryError("strings of Unicode text", quote(error.object)) from None
    except msgspec.ValidationError as error:
        name = str(error).rpartition("`$.")[2].rstrip("`").partition("[")[0]
        if name in value:
            expected = _EXPECTED.get(name, "a string of Unicode text")
            raise EntryError(f'"{name}": {expected}', quote(value[name])) from None
        known_names = sorted(kind.__struct_fields__)
        name = min(value.keys() - set(known_names))
        raise EntryError(
            f"the keys {', '.join(known_names)}", quote(name), name, known_names
        ) from None
    return known


def _only(**paths: str | None) -> str:
    """The one path that is stated."""
    stated = [name for name, path in paths.items() if path is not None]
    if len(stated) != 1:
        expected = " or ".join(f'"{name}"' for name in paths)
        raise EntryError(f"a key {expected}", " and ".join(stated) or "none")
    path = str(paths[stated[0]])
    if stated == ["audio"] and not path.lower().endswith(AUDIO_EXTENSIONS):
        raise EntryError(f'"audio": a file of sound ({", ".join(AUDIO_EXTENSIONS)})', quote(path))
    return path


def _captions(stated: _Captions) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Captions, and the name of each where they have names."""
    if not isinstance(stated, dict):
        return tuple(_texts(stated or [])), ()
    named = [(text, name) for name, some in stated.items() for text in _texts(some)]
    return tuple(text for text, _ in named), tuple(name for _, name in named)


def _texts(stated: _Texts) -> list[str]:
    return [stated] if isinstance(stated, str) else stated
