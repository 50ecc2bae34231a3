"""Entries of annotation files as columns, parsed and checked many lines at a time.

Only what is right beyond doubt is taken here. Lines that may be wrong, or that are merely unusual,
are left to `formats` and `records`, which alone say what an entry means and what is wrong with it.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import json

from internvideo_jax.data.annotations.formats import FRAME_PATTERN, Entry, Layout, is_frame_pattern
from internvideo_jax.data.annotations.records import Context
from internvideo_jax.data.decode.paths import AUDIO_EXTENSIONS

# `Entry` with the line that it begins on, its label in one of two columns.
SCHEMA = pa.schema(
    [
        ("line", pa.int64()),
        ("path", pa.string()),
        ("id", pa.string()),
        ("start", pa.float64()),
        ("end", pa.float64()),
        ("label", pa.int32()),
        ("labels", pa.list_(pa.int32())),
        ("captions", pa.list_(pa.string())),
        ("num_frames", pa.int32()),
        ("frame_pattern", pa.string()),
        ("source", pa.string()),
    ]
)

Columns = dict[str, pa.Array]

_TEXT_COLUMNS = {
    "csv": ("path", "label"),
    "interval": ("path", "total", "start", "end", "label"),
    "pretrain": ("source", "path", "total", "start", "end", "label"),
    "frames": ("path", "num_frames"),
}
# Quotes, and whatever else Python takes for space but for tabs and spaces.
_UNUSUAL_TEXT = (
    r'["\x00-\x08\x0a-\x1f\x{85}\x{a0}\x{1680}\x{2000}-\x{200a}\x{2028}\x{2029}\x{202f}\x{205f}'
    r"\x{3000}]"
)
_UNUSUAL_PATH = r"^$|^\.|/$|/\.|//|\x00"
_INDEX = "^[0-9]{1,9}$"
# Of as many digits as every parser rounds alike.
_NUMBER = r"^-?[0-9]{1,15}(\.[0-9]{1,15})?$"
# Where Arrow sees no difference between null and nothing, but there is one.
_STATED_NULL = r'("(video|audio|id|source|frame_pattern)|\\u[^"]*)"\s*:\s*null'
_LIST_LABEL, _LIST_CAPTION = r'"label"\s*:\s*\[', r'"caption"\s*:\s*\['
# Fewer lines are sooner parsed one by one.
_FEW = 16


def from_entries(entries: Sequence[tuple[int, Entry]]) -> pa.RecordBatch:
    """Columns of entries, checked ones, with their lines."""
    rows = [
        (
            *(line, entry.path, entry.id, entry.start, entry.end),
            *((None, entry.label) if isinstance(entry.label, tuple) else (entry.label, None)),
            *(entry.captions, entry.num_frames, entry.frame_pattern, entry.source),
        )
        for line, entry in entries
    ]
    columns = zip(*rows, strict=True) if rows else [()] * len(SCHEMA)
    return pa.RecordBatch.from_arrays(
        [pa.array(column, field.type) for column, field in zip(columns, SCHEMA, strict=True)],
        schema=SCHEMA,
    )


def from_lines(
    lines: pa.StringArray, numbers: np.ndarray, layout: Layout, context: Context
) -> pa.RecordBatch:
    """Columns of those of the lines that are right beyond doubt, in any order.

    Args:
      lines: with their ends, as they follow each other in the file but for some that are left out.
      numbers: of the lines, int64.
      layout: how they are written; not `json`.
      context: what they have to fit.
    """
    if context.check_files:
        # Looking for files costs more than reading lines one by one.
        return from_entries([])
    parts = _parse_json(lines) if layout.format == "jsonl" else [_parse_text(lines, layout)]
    batches = [from_entries([])]
    for rows, columns in parts:
        unfit = _unfit(columns, context)
        columns["line"] = pa.array(numbers[rows])
        taken = pa.array(np.flatnonzero(~unfit))
        arrays = [columns[field.name].take(taken).cast(field.type) for field in SCHEMA]
        batches.append(pa.RecordBatch.from_arrays(arrays, schema=SCHEMA))
    return pa.concat_batches(batches)


def _parse_json(lines: pa.StringArray) -> list[tuple[np.ndarray, Columns]]:
    """Lines of the format jsonl: which ones, and their columns."""
    trimmed = pc.ascii_trim_whitespace(lines)
    # Between braces no object can go on in the next line.
    plain = _bools(pc.and_(pc.starts_with(trimmed, "{"), pc.ends_with(trimmed, "}")))
    kinds = np.zeros(len(lines), np.int8)
    if b"[" in _text(lines):
        kinds += _matches(lines, _LIST_LABEL) + 2 * _matches(lines, _LIST_CAPTION).astype(np.int8)
    parts = []
    for kind in np.unique(kinds):
        label, caption = pa.int64(), pa.string()
        schema = pa.schema(
            [
                ("video", pa.string()),
                ("audio", pa.string()),
                ("label", pa.list_(label) if kind & 1 else label),
                ("caption", pa.list_(caption) if kind & 2 else caption),
                ("start", pa.float64()),
                ("end", pa.float64()),
                ("id", pa.string()),
                ("num_frames", pa.int64()),
                ("frame_pattern", pa.string()),
                ("source", pa.string()),
            ]
        )
        rows = np.flatnonzero(plain & (kinds == kind))
        some = lines if len(rows) == len(lines) else lines.take(pa.array(rows))
        for first, table in _parse_objects(some, schema):
            end = first + len(table)
            raw = {name: table[name].combine_chunks() for name in table.column_names}
            parts.append((rows[first:end], _json_columns(some[first:end], raw)))
    return parts


def _parse_objects(lines: pa.StringArray, schema: pa.Schema) -> list[tuple[int, pa.Table]]:
    """The objects of lines that hold one each, wherever they can be parsed, from which line on."""
    if not len(lines):
        return []
    text = _text(lines)
    try:
        table = json.read_json(
            pa.BufferReader(text),
            json.ReadOptions(use_threads=False, block_size=len(text) + 1),
            json.ParseOptions(schema, unexpected_field_behavior="error"),
        )
        if len(table) == len(lines):
            return [(0, table)]
    except pa.ArrowInvalid:
        pass
    if len(lines) <= _FEW:
        return []
    half = len(lines) // 2
    second = _parse_objects(lines[half:], schema)
    return _parse_objects(lines[:half], schema) + [(half + first, table) for first, table in second]


def _json_columns(lines: pa.StringArray, raw: Columns) -> Columns:
    count = len(lines)
    path = pc.coalesce(raw["video"], raw["audio"])
    unfit = _valid(raw["video"]) & _valid(raw["audio"])
    if raw["audio"].null_count < count:
        unfit |= _valid(raw["audio"]) & ~_bools(_ends_with(raw["audio"], AUDIO_EXTENSIONS))
    if b"null" in _text(lines):
        unfit |= _matches(lines, _STATED_NULL)
    pattern = raw["frame_pattern"]
    unfit |= _valid(pattern) & ~_valid(raw["num_frames"])
    known = [name for name in pattern.unique().to_pylist() if name and is_frame_pattern(name)]
    unfit |= _valid(pattern) & ~_bools(pc.is_in(pattern, pa.array(known, pa.string())))
    pattern = pc.if_else(
        pa.array(_valid(raw["num_frames"])),
        pattern.fill_null(FRAME_PATTERN),
        pa.scalar(None, pa.string()),
    )
    is_list = pa.types.is_list(raw["label"].type)
    captions = raw["caption"]
    if pa.types.is_list(captions.type):
        lengths = pc.list_value_length(captions).fill_null(0).to_numpy()
        captions = captions.flatten()
        unfit |= _some(lengths, ~_valid(captions))
    else:
        lengths = _valid(captions).astype(np.int32)
        captions = captions.drop_null()
    return {
        "path": pc.if_else(pa.array(unfit), pa.scalar(None, pa.string()), path),
        "id": raw["id"],
        "start": raw["start"],
        "end": raw["end"],
        "label": pa.nulls(count, pa.int64()) if is_list else raw["label"],
        "labels": raw["label"] if is_list else pa.nulls(count, pa.list_(pa.int64())),
        "captions": _lists(lengths, captions),
        "num_frames": raw["num_frames"],
        "frame_pattern": pattern,
        "source": raw["source"].fill_null(""),
    }


def _parse_text(lines: pa.StringArray, layout: Layout) -> tuple[np.ndarray, Columns]:
    """Lines in one of the formats with columns: which ones, and their columns."""
    trimmed = pc.ascii_trim_whitespace(lines)
    mark = layout.separator or " "
    split = pc.ascii_split_whitespace if mark == " " else pc.split_pattern
    columns = split(trimmed) if mark == " " else split(trimmed, mark)
    names, lengths = _TEXT_COLUMNS[layout.format], pc.list_value_length(columns).to_numpy()
    fits = lengths > 2 if layout.format == "frames" else lengths == len(names)
    rows = np.flatnonzero(fits & ~_matches(trimmed, _UNUSUAL_TEXT))
    columns, count = columns.take(pa.array(rows)), len(rows)
    raw = {
        name: pc.ascii_trim_whitespace(pc.list_element(columns, number))
        for number, name in enumerate(names)
    }
    if layout.format == "frames":
        last = columns.offsets.to_numpy()[1:] - 1
        raw["label"] = pc.ascii_trim_whitespace(columns.values.take(pa.array(last)))
    label = _numbers(raw["label"], _INDEX, pa.int64())
    unfit = ~_valid(label)
    if layout.format == "pretrain":
        unfit &= ~_bools(pc.equal(raw["label"], "-1"))
    start = end = pa.nulls(count, pa.float64())
    if "start" in raw:
        total, start, end = (
            _numbers(raw[name], _NUMBER, pa.float64()) for name in ("total", "start", "end")
        )
        unfit |= ~(_valid(total) & _valid(start) & _valid(end))
        seconds, since, until = (
            array.fill_null(0).to_numpy(zero_copy_only=False) for array in (total, start, end)
        )
        is_whole = (since == -1) & (until == -1)
        unfit |= ~is_whole & (seconds > 0) & (seconds <= since)
        start, end = pa.array(since, mask=is_whole), pa.array(until, mask=is_whole)
    num_frames, pattern = pa.nulls(count, pa.int64()), pa.nulls(count, pa.string())
    if layout.format == "frames":
        num_frames = _numbers(raw["num_frames"], _INDEX, pa.int64())
        unfit |= ~_valid(num_frames)
        pattern = pa.repeat(layout.frame_pattern, count)
    return rows, {
        "path": pc.if_else(pa.array(unfit), pa.scalar(None, pa.string()), raw["path"]),
        "id": pa.nulls(count, pa.string()),
        "start": start,
        "end": end,
        "label": label,
        "labels": pa.nulls(count, pa.list_(pa.int64())),
        "captions": _lists(np.zeros(count, np.int32), pa.array([], pa.string())),
        "num_frames": num_frames,
        "frame_pattern": pattern,
        "source": raw.get("source", pa.repeat("", count)),
    }


def _unfit(columns: Columns, context: Context) -> np.ndarray:
    """Which rows may not be what `records.check_entry` admits; all without a path."""
    path = columns["path"]
    unfit = ~_valid(path) | _matches(path, _UNUSUAL_PATH)
    is_absolute = _bools(pc.starts_with(path, "/"))
    if is_absolute.any():
        prefix = context.root.rstrip("/") + "/"
        unfit |= is_absolute & ~_bools(pc.starts_with(path, prefix))
    has_start, has_end = _valid(columns["start"]), _valid(columns["end"])
    has_images = _valid(columns["num_frames"])
    has_times = has_start | has_end
    if has_times.any():
        start = columns["start"].fill_null(0.0).to_numpy()
        end = columns["end"].fill_null(np.inf).to_numpy()
        is_wrong = ~((start >= 0) & (start < end)) | (has_end & np.isinf(end))
        # -0.0 has another name than 0.0.
        unfit |= has_times & (is_wrong | np.signbit(start) | has_images)
    if has_images.any():
        unfit |= has_images & ~_between(columns["num_frames"], 1, 2**31)
    limit = 2**31 if context.num_classes is None else context.num_classes
    has_label, has_labels = _valid(columns["label"]), _valid(columns["labels"])
    unfit |= has_label & ~_between(columns["label"], 0, limit)
    if has_labels.any():
        lengths = pc.list_value_length(columns["labels"]).fill_null(0).to_numpy()
        labels = columns["labels"].flatten()
        unfit |= _some(lengths, ~_between(labels, 0, limit))
        owner = np.repeat(np.arange(len(lengths)), lengths)
        pairs = np.sort(owner << 31 | labels.fill_null(0).to_numpy() & (2**31 - 1))
        unfit[pairs[1:][pairs[1:] == pairs[:-1]] >> 31] = True
    if context.num_classes is not None:
        unfit |= ~(has_label | has_labels)
    return unfit


def _text(lines: pa.StringArray) -> bytes:
    """The text of lines that lie one after the other."""
    offsets = np.frombuffer(lines.buffers()[1], np.int32)
    first, end = offsets[lines.offset], offsets[lines.offset + len(lines)]
    return bytes(memoryview(lines.buffers()[2])[first:end])


def _bools(array: pa.BooleanArray) -> np.ndarray:
    return array.fill_null(False).to_numpy(zero_copy_only=False)


def _valid(array: pa.Array) -> np.ndarray:
    return array.is_valid().to_numpy(zero_copy_only=False)


def _matches(array: pa.StringArray, pattern: str) -> np.ndarray:
    return _bools(pc.match_substring_regex(array, pattern))


def _ends_with(array: pa.StringArray, endings: Sequence[str]) -> pa.BooleanArray:
    pattern = "|".join(ending.replace(".", r"\.") for ending in endings)
    return pc.match_substring_regex(pc.utf8_lower(array), f"({pattern})$")


def _numbers(texts: pa.StringArray, pattern: str, type: pa.DataType) -> pa.Array:
    """Numbers that are written so; null for all others."""
    is_one = pc.match_substring_regex(texts, pattern)
    return pc.if_else(is_one, texts, pa.scalar(None, pa.string())).cast(type)


def _between(array: pa.Array, first: int, end: int) -> np.ndarray:
    values = array.fill_null(first - 1).to_numpy()
    return (values >= first) & (values < end)


def _some(lengths: np.ndarray, is_true: np.ndarray) -> np.ndarray:
    """Which of the lists that lie one after the other have an element for which it holds."""
    ends = np.cumsum(lengths)
    counts: Any = np.concatenate([[0], np.cumsum(is_true)])
    return counts[ends] > counts[ends - lengths]


def _lists(lengths: np.ndarray, values: pa.Array) -> pa.ListArray:
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), values)
