"""Clips held out of a list, to evaluate on while the others are trained on."""

import hashlib
import os
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import overload

from internvideo_jax.data.annotations.records import ClipRecord

Label = int | str | None


class SomeRecords(Sequence[ClipRecord]):
    """Some of the records of a list.

    Args:
      records: the list.
      rows: which of them, in order.
    """

    def __init__(self, records: Sequence[ClipRecord], rows: Sequence[int]):
        self._records, self._rows = records, rows

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, index: int) -> ClipRecord: ...
    @overload
    def __getitem__(self, index: slice) -> "SomeRecords": ...
    def __getitem__(self, index: int | slice) -> "ClipRecord | SomeRecords":
        if isinstance(index, slice):
            return SomeRecords(self._records, self._rows[index])
        return self._records[self._rows[index]]

    def __iter__(self) -> Iterator[ClipRecord]:
        return (self._records[row] for row in self._rows)


def divide(
    records: Sequence[ClipRecord], share: float, root: str | os.PathLike[str]
) -> tuple[SomeRecords, SomeRecords]:
    """Divides clips into those to train on and those held out.

    Of the files of each class, `share` is held out: at least one of several, never all, and with a
    file all clips that are cut from it. Which ones follows from their paths below `root` alone, so
    that a file stays on its side when others are added, or when all move together. A file belongs
    to the class of its first clip.

    Args:
      records: the clips.
      share: from 0 to below 1.
      root: folder that their paths start from.

    Raises:
      ValueError: no class has clips of several files.
    """
    rows: dict[str, list[int]] = defaultdict(list)
    labels: dict[str, set[Label]] = defaultdict(set)
    files: dict[Label, list[str]] = defaultdict(list)
    for row, record in enumerate(records):
        name = os.path.relpath(record.path, root)
        if name not in rows:
            files[_first(record)].append(name)
        rows[name].append(row)
        labels[name].update(_all(record))
    held_out: set[str] = set()
    for names in files.values():
        if len(names) > 1:
            count = min(max(round(share * len(names)), 1), len(names) - 1)
            held_out.update(sorted(names, key=_rank)[:count])
    # Clips of one file may be of several classes, and those to train on must show all classes.
    seen = {label for name in rows if name not in held_out for label in labels[name]}
    for name in sorted(held_out, key=_rank):
        if not labels[name] <= seen:
            held_out.remove(name)
            seen |= labels[name]
    if share and not held_out:
        raise ValueError(
            "validation_share: expected a class with clips of several files, some of which can be"
            " held out, found none; name clips to evaluate on as eval_data"
        )
    parts: tuple[list[int], list[int]] = [], []
    for name, some in rows.items():
        parts[name in held_out].extend(some)
    train, validation = (SomeRecords(records, sorted(part)) for part in parts)
    return train, validation


def _rank(name: str) -> bytes:
    """An order of file names that has nothing to do with what they say."""
    return hashlib.sha256(os.fsencode(name)).digest()


def _all(record: ClipRecord) -> tuple[Label, ...]:
    return record.label if isinstance(record.label, tuple) else (record.label,)


def _first(record: ClipRecord) -> Label:
    return next(iter(_all(record)), None)
