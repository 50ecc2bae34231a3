"""The entries of annotation files of all formats."""

import functools
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Any, NamedTuple

from internvideo_jax.data.annotations.columns import TEXT_FORMATS, headed_entry, splitter
from internvideo_jax.data.annotations.entries import FRAME_PATTERN, Entry, EntryError, Format
from internvideo_jax.data.annotations.json_entries import (
    parse_jsonl,
    plain_jsonl_entries,
    stage2_entry,
)
from internvideo_jax.data.annotations.lines import read_blocks, read_items, split_lines

_LIST_ITEMS = 1024


class Layout(NamedTuple):
    """How an annotation file is written.

    Attributes:
      format: one of `FORMATS`.
      separator: between the columns of text formats; else None.
      frame_pattern: names of the images, for `frames`.
      header: keys of jsonl that the columns of a `csv` stand for whose first line names them, ""
        for those that are not read; else None.
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
            yield [(number, parsed(stage2_entry, item)) for number, item in some]
        return
    parse = line_parser(layout)
    is_header = layout.header is not None
    for number, block in read_blocks(path):
        entries = plain_jsonl_entries(block) if layout.format == "jsonl" else None
        if entries is not None:
            yield list(enumerate(entries, number))
        else:
            lines = list(split_lines(number, block))
            if is_header and lines:
                is_header = False
                del lines[0]
            yield [(line, parsed(parse, text)) for line, text in lines]


def parsed(parse: Callable[[Any], Entry], item: Any) -> Entry | EntryError:
    """What `parse` makes of an item, or what is wrong with it."""
    try:
        return item if isinstance(item, EntryError) else parse(item)
    except EntryError as error:
        return error


def line_parser(layout: Layout) -> Callable[[str], Entry]:
    """What makes entries of the lines of a file; it raises EntryError for wrong ones."""
    if layout.format == "jsonl":
        return parse_jsonl
    split, parse = splitter(layout.separator or " "), TEXT_FORMATS[layout.format].parse
    if layout.header is not None:
        parse = functools.partial(headed_entry, layout.header)
    if layout.format != "frames":
        return lambda line: parse(split(line))

    def with_pattern(line: str) -> Entry:
        entry = parse(split(line))
        entry.frame_pattern = layout.frame_pattern
        return entry

    return with_pattern
