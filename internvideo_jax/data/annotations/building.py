"""Annotation files into files of entries, in one pass and with little memory: 25 bytes per clip."""

import re
from array import array
from pathlib import Path
from typing import NamedTuple

import numpy as np

from internvideo_jax.data.annotations.entries import Entry, EntryError, quote
from internvideo_jax.data.annotations.entry_file import EntryFile, written
from internvideo_jax.data.annotations.formats import Layout, read_entries
from internvideo_jax.data.annotations.records import (
    MAX_KEPT_PROBLEMS,
    MAX_SHOWN_PROBLEMS,
    Context,
    Problem,
    check_entry,
    entry_id,
)

_UNIQUE_ID = 'a unique id (by default the path with its times; jsonl may state an "id")'
_NUMBERED = re.compile("#[0-9]+$")
_TIME = r"(-?[0-9]+(?:\.[0-9]+)?(?:e[-+][0-9]+)?)?"
_TIMED = re.compile(f"(.*)@{_TIME}-{_TIME}", re.DOTALL)


class Built(NamedTuple):
    """What became of an annotation file.

    Attributes:
      file: an `EntryFile` with its good entries, under a temporary name.
      problems: the first `MAX_KEPT_PROBLEMS` bad ones, in order.
      num_problems: all of them.
      num_entries: good and bad ones.
    """

    file: Path
    problems: list[Problem]
    num_problems: int
    num_entries: int


class _Problems:
    """What is wrong: all of it counted, the beginning kept."""

    def __init__(self) -> None:
        self.first: list[Problem] = []
        self.number = 0

    def add(self, line: int, error: EntryError) -> None:
        self.number += 1
        if len(self.first) < MAX_KEPT_PROBLEMS:
            suggestion = error.suggestion() if self.number <= MAX_SHOWN_PROBLEMS else ""
            self.first.append(Problem(line, error.expected, error.found + suggestion))


def build(path: str, layout: Layout, context: Context, folder: Path, fingerprint: str) -> Built:
    """Writes the good entries of an annotation file to an `EntryFile` in `folder`."""
    wrong, repeating = _Problems(), _Problems()
    hashes = array("q")
    num_entries = 0
    with written(folder, fingerprint) as (file, writer):
        for entries in read_entries(path, layout):
            num_entries += len(entries)
            good = []
            for line, entry in entries:
                try:
                    if isinstance(entry, EntryError):
                        raise entry
                    check_entry(entry, context, layout.has_names)
                except EntryError as error:
                    wrong.add(line, error)
                else:
                    entry.line = line
                    good.append(entry)
            writer.write(good)
            hashes.extend(map(_hash_id, good))
    repeated = _repeated(np.frombuffer(hashes, np.int64))
    if repeated.any():
        try:
            is_list = layout.format == "json"
            settled = _settle_ids(file, repeated, is_list, fingerprint, repeating)
        finally:
            file.unlink()
        file = settled
    problems = sorted(wrong.first + repeating.first, key=lambda problem: problem.line or 0)
    number = wrong.number + repeating.number
    return Built(file, problems[:MAX_KEPT_PROBLEMS], number, num_entries)


def _hash_id(entry: Entry) -> int:
    """The same for the same `entry_id`; times are not written out, which takes longest."""
    name = entry.id
    if name is None:
        if not (entry.start is None and entry.end is None):
            return hash((entry.path, entry.start, entry.end))
        name = entry.path
    if "@" in name and (timed := _TIMED.fullmatch(name)):
        path, start, end = timed.groups()
        return hash((path, start and float(start), end and float(end)))
    return hash(name)


def _repeated(hashes: np.ndarray) -> np.ndarray:
    """Which of them occur several times."""
    ordered = np.sort(hashes)
    several = ordered[1:][ordered[1:] == ordered[:-1]]
    return np.isin(hashes, several) if len(several) else np.zeros(len(hashes), bool)


def _settle_ids(
    file: Path, repeated: np.ndarray, is_list: bool, fingerprint: str, problems: _Problems
) -> Path:
    """Copies a file with each id once: what repeats one gets a number, or is left out as wrong.

    Args:
      file: as it was written.
      repeated: which of its clips may share their ids with others.
      is_list: whether the format is `json`: retrieval lists hold an entry for each caption of a
        video.
      fingerprint: of the clips.
      problems: gets the clips that are wrong.
    """
    lines: dict[str, int] = {}
    counts: dict[str, int] = {}
    entries = EntryFile(file)
    with written(file.parent, fingerprint) as (target, writer):
        for row in range(len(entries)):
            entry = entries[row]
            name = entry_id(entry)
            # What a number may make a name equal to is looked at, too.
            if repeated[row] or (is_list and _NUMBERED.search(name)):
                if name in lines and not is_list:
                    found = f"{quote(name)} again, first on line {lines[name]}"
                    problems.add(entry.line, EntryError(_UNIQUE_ID, found))
                    continue
                if name in lines:
                    times = counts.get(name, 1) + 1
                    while f"{name}#{times}" in lines:
                        times += 1
                    counts[name] = times
                    name = entry.id = f"{name}#{times}"
                lines[name] = entry.line
            writer.write([entry])
    return target
