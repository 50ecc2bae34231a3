"""Annotation files into Arrow files, in one pass and with little memory: 17 bytes for each clip,
and what the lines at hand need.
"""

import contextlib
import json
import os
import uuid
from array import array
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from internvideo_jax.data.annotations import columns
from internvideo_jax.data.annotations.formats import Entry, Layout, line_parser, read_list
from internvideo_jax.data.annotations.lines import (
    MAX_ENTRY_BYTES,
    Block,
    EntryError,
    decode_line,
    quote,
    read_blocks,
)
from internvideo_jax.data.annotations.records import (
    MAX_KEPT_PROBLEMS,
    Context,
    Problem,
    check_entry,
    default_id,
)

NumberedEntry = tuple[int, Entry]

# Ends the names of files that are being made.
PARTIAL = ".partial"
# Key of the metadata of the last batch, which has no rows: what the batches before it amount to.
SUMMARY = b"summary"

_LIST_ENTRIES = 1024
_UNIQUE_ID = 'a unique id (by default the path with its times; jsonl may state an "id")'


class Summary(NamedTuple):
    """What an Arrow file of clips amounts to.

    Attributes:
      fingerprint: of the clips, wherever they lie.
      max_label: the largest label; -1 if there is none.
      has_unlabelled: whether any clip has no label.
      first_of_many_labels: the first clip whose labels are a list, and not of one; None if none is.
      absolute: the first and the last of all absolute paths in their alphabetical order, if any.
      climbs: whether any path goes up from the root and comes back.
    """

    fingerprint: str
    max_label: int = -1
    has_unlabelled: bool = False
    first_of_many_labels: int | None = None
    absolute: tuple[str, str] | None = None
    climbs: bool = False


class Built(NamedTuple):
    """What became of an annotation file.

    Attributes:
      file: an Arrow file with its good entries, under a temporary name.
      problems: the first `MAX_KEPT_PROBLEMS` bad ones, in order.
      num_problems: all of them.
      num_entries: good and bad ones.
    """

    file: Path
    problems: list[Problem]
    num_problems: int
    num_entries: int


def build(path: str, layout: Layout, context: Context, folder: Path, fingerprint: str) -> Built:
    """Writes the good entries of an annotation file to an Arrow file in `folder`."""
    reader = _Reader(path, layout, context)
    hashes = array("q")
    with _written(folder, fingerprint) as (file, writer):
        for batch in reader.batches():
            writer.write(batch)
            hashes.extend(map(hash, record_ids(batch)))
    repeated = _repeated(np.frombuffer(hashes, np.int64))
    if repeated.any():
        try:
            is_list = layout.format == "json"
            settled, problems, number = _settle_ids(file, repeated, is_list, fingerprint)
        finally:
            file.unlink()
        reader.add(problems, number)
        file = settled
    return Built(file, reader.problems, reader.num_problems, reader.num_entries)


class _Reader:
    """Reads an annotation file and keeps account of what is wrong with it."""

    def __init__(self, path: str, layout: Layout, context: Context):
        self._path, self._layout, self._context = path, layout, context
        self.problems: list[Problem] = []
        self.num_problems = 0
        self.num_entries = 0

    def add(self, problems: list[Problem], number: int) -> None:
        """Notes the first problems with some entries, and of how many they are the first."""
        self.num_problems += number
        known = self.problems + problems
        self.problems = sorted(known, key=lambda problem: problem.line or 0)[:MAX_KEPT_PROBLEMS]

    def batches(self) -> Iterator[pa.RecordBatch]:
        """The good entries in order."""
        if self._layout.format == "json":
            entries = read_list(self._path)
            while some := list(islice(entries, _LIST_ENTRIES)):
                yield columns.from_entries(self._checked(some))
        else:
            self._parse = line_parser(self._layout)
            yield from map(self._read_block, read_blocks(self._path))

    def _read_block(self, block: Block) -> pa.RecordBatch:
        ends = np.flatnonzero(np.frombuffer(block.data, np.uint8) == ord("\n")) + 1
        offsets = np.concatenate([[0], ends]).astype(np.int32)
        numbers = block.number + np.arange(len(ends))
        lines = pa.StringArray.from_buffers(
            len(ends), pa.py_buffer(offsets), pa.py_buffer(block.data)
        )
        fast = columns.from_entries([])
        try:
            lines.validate(full=True)
        except pa.ArrowInvalid:
            # Not UTF-8.
            pass
        else:
            is_short = np.diff(offsets) <= MAX_ENTRY_BYTES
            some = lines if is_short.all() else lines.filter(pa.array(is_short))
            fast = columns.from_lines(some, numbers[is_short], self._layout, self._context)
        self.num_entries += len(fast)
        is_left = np.ones(len(ends), bool)
        is_left[fast["line"].to_numpy() - block.number] = False
        left = (
            (int(numbers[row]), line)
            for row in np.flatnonzero(is_left)
            if (line := decode_line(block.data[offsets[row] : offsets[row + 1]]))
        )
        slow = columns.from_entries(self._checked((n, self._entry(line)) for n, line in left))
        both = pa.concat_batches([fast, slow])
        order = both["line"].to_numpy()
        is_ordered = bool((order[1:] > order[:-1]).all())
        return both if is_ordered else both.take(pa.array(np.argsort(order)))

    def _entry(self, line: str | EntryError) -> Entry | EntryError:
        try:
            return line if isinstance(line, EntryError) else self._parse(line)
        except EntryError as error:
            return error

    def _checked(self, entries: Iterable[tuple[int, Entry | EntryError]]) -> list[NumberedEntry]:
        """The good ones."""
        good: list[NumberedEntry] = []
        bad: list[Problem] = []
        num_bad = 0
        for line, entry in entries:
            self.num_entries += 1
            try:
                if isinstance(entry, EntryError):
                    raise entry
                good.append((line, check_entry(entry, self._context)))
            except EntryError as error:
                num_bad += 1
                if len(bad) < MAX_KEPT_PROBLEMS:
                    bad.append(Problem(line, error.expected, error.found))
        self.add(bad, num_bad)
        return good


class _Writer:
    """Writes batches, and at the end what they amount to."""

    def __init__(self, file: pa.RecordBatchFileWriter, fingerprint: str):
        self._summary = Summary(fingerprint)
        self._num_rows = 0
        self._file = file

    def finish(self) -> None:
        """Writes the summary."""
        summary = json.dumps(self._summary._asdict()).encode()
        self._file.write_batch(columns.from_entries([]), {SUMMARY: summary})

    def write(self, batch: pa.RecordBatch) -> None:
        """Writes a batch, unless it is empty."""
        if not len(batch):
            return
        self._file.write_batch(batch)
        known, path, labels = self._summary, batch["path"], batch["labels"]
        lengths = pc.list_value_length(labels)
        many = np.flatnonzero(pc.not_equal(lengths, 1).fill_null(False).to_numpy(False))
        if len(many) and known.first_of_many_labels is None:
            known = known._replace(first_of_many_labels=self._num_rows + int(many[0]))
        self._num_rows += len(batch)
        largest = (pc.max(batch["label"]).as_py(), pc.max(labels.flatten()).as_py())
        is_unlabelled = pc.and_(batch["label"].is_null(), labels.is_null())
        ends = pc.min_max(path.filter(pc.starts_with(path, "/"))).as_py().values()
        paths = [end for end in (*ends, *(known.absolute or ())) if end is not None]
        self._summary = known._replace(
            max_label=max(known.max_label, *(-1 if label is None else label for label in largest)),
            has_unlabelled=known.has_unlabelled or pc.any(is_unlabelled).as_py(),
            absolute=(min(paths), max(paths)) if paths else None,
            climbs=known.climbs or pc.any(pc.match_substring_regex(path, r"^\.\.(/|$)")).as_py(),
        )


@contextlib.contextmanager
def _written(folder: Path, fingerprint: str) -> Iterator[tuple[Path, _Writer]]:
    """A new file that is removed if the block fails."""
    file = folder / f"{uuid.uuid4().hex}{PARTIAL}"
    try:
        with pa.ipc.new_file(str(file), columns.SCHEMA) as opened:
            writer = _Writer(opened, fingerprint)
            yield file, writer
            writer.finish()
    except BaseException:
        file.unlink(missing_ok=True)
        raise


def open_batches(file: str | os.PathLike[str]) -> tuple[list[pa.RecordBatch], Summary]:
    """Maps an Arrow file of clips into memory: its batches, and what they amount to."""
    reader = pa.ipc.open_file(pa.memory_map(os.fspath(file)))
    last = reader.num_record_batches - 1
    _, metadata = reader.get_batch_with_custom_metadata(last)
    summary = Summary(**json.loads(metadata[SUMMARY]))
    return [reader.get_batch(number) for number in range(last)], summary


def record_ids(batch: pa.RecordBatch) -> Any:
    """The ids of the clips in a batch, strings."""
    path, stated = (batch[name].to_numpy(zero_copy_only=False) for name in ("path", "id"))
    start, end = batch["start"], batch["end"]
    if batch["id"].null_count == start.null_count == end.null_count == len(batch):
        return path
    clips = zip(stated, path, start.to_pylist(), end.to_pylist(), strict=True)
    return [default_id(*clip) if name is None else name for name, *clip in clips]


def _repeated(hashes: np.ndarray) -> np.ndarray:
    """Which of them occur several times."""
    ordered = np.sort(hashes)
    several = ordered[1:][ordered[1:] == ordered[:-1]]
    return np.isin(hashes, several) if len(several) else np.zeros(len(hashes), bool)


def _settle_ids(
    file: Path, repeated: np.ndarray, is_list: bool, fingerprint: str
) -> tuple[Path, list[Problem], int]:
    """Copies a file with each id once: what repeats one gets a number, or is left out as wrong.

    Args:
      file: as it was written.
      repeated: which of its clips may share their ids with others.
      is_list: whether the format is `json`: retrieval lists hold an entry for each caption of a
        video.
      fingerprint: of the clips.

    Returns:
      The copy, the first problems, and how many there are.
    """
    lines: dict[str, int] = {}
    counts: dict[str, int] = {}
    problems: list[Problem] = []
    num_problems = 0
    batches, _ = open_batches(file)
    first = 0
    with _written(file.parent, fingerprint) as (target, writer):
        for batch in batches:
            names, count = record_ids(batch), len(batch)
            is_asked = repeated[first : first + count]
            if is_list:
                # What a number may make a name equal to.
                ends = pc.match_substring_regex(pa.array(names, pa.string()), "#[0-9]+$")
                is_asked = is_asked | ends.to_numpy(False)
            stated, is_wrong = batch["id"].to_pylist(), np.zeros(count, bool)
            for row in np.flatnonzero(is_asked):
                name, line = names[row], batch["line"][row].as_py()
                if name in lines and not is_list:
                    is_wrong[row] = True
                    num_problems += 1
                    if len(problems) < MAX_KEPT_PROBLEMS:
                        found = f"{quote(name)} again, first on line {lines[name]}"
                        problems.append(Problem(line, _UNIQUE_ID, found))
                    continue
                if name in lines:
                    times = counts.get(name, 1) + 1
                    while f"{name}#{times}" in lines:
                        times += 1
                    counts[name] = times
                    name = stated[row] = f"{name}#{times}"
                lines[name] = line
            ids = pa.array(stated, pa.string())
            batch = batch.set_column(batch.schema.get_field_index("id"), "id", ids)
            writer.write(batch.filter(pa.array(~is_wrong)))
            first += count
    return target, problems, num_problems
