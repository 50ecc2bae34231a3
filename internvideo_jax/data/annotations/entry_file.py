"""Files of entries, each of which can be had without reading the others.

A file holds the entries one after the other (MessagePack), where each begins and the last one ends
(int64), the `Summary` (MessagePack), and the number of entries and of the summary's bytes.
"""

import contextlib
import dataclasses
import mmap
import os
import socket
import struct
import time
import uuid
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

import msgspec
import numpy as np

from internvideo_jax.data.annotations.entries import Entry

# More names are no classes, but captions or file names.
MAX_NAMES = 100_000

# Ends the names of files that are being made.
PARTIAL = ".partial"
_ABANDONED_SECONDS = 86400.0

_SIZES = struct.Struct("<QQ")
_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Entry).decode


class DamagedFileError(ValueError):
    """A file of entries that does not hold what was written; without it, it is made anew."""

    def __init__(self, path: str):
        super().__init__(f"{path}: expected the entries of a list, found damaged bytes; delete it")


@dataclasses.dataclass
class Summary:
    """What the entries of a file amount to.

    Attributes:
      fingerprint: of the clips, wherever they lie.
      max_label: the largest label; -1 if there is none.
      has_unlabelled: whether any clip has no label.
      names: of classes, where labels are names; no more than `MAX_NAMES` and one.
      first_of_many_labels: the first clip whose labels are a list, and not of one; None if none is.
      absolute: the first and the last of all absolute paths in their alphabetical order, if any.
      climbs: whether any path goes up from the root and comes back.
    """

    fingerprint: str
    max_label: int = -1
    has_unlabelled: bool = False
    names: set[str] = dataclasses.field(default_factory=set)
    first_of_many_labels: int | None = None
    absolute: tuple[str, str] | None = None
    climbs: bool = False

    def add(self, row: int, entry: Entry) -> None:
        """Takes one more entry into account."""
        label, path = entry.label, entry.path
        labels = label if isinstance(label, tuple) else (label,)
        for each in labels:
            if each is None:
                self.has_unlabelled = True
            elif isinstance(each, int):
                self.max_label = max(self.max_label, each)
            elif len(self.names) <= MAX_NAMES:
                self.names.add(each)
        if len(labels) != 1 and self.first_of_many_labels is None:
            self.first_of_many_labels = row
        if path[0] == "/":
            first, last = self.absolute or (path, path)
            self.absolute = min(first, path), max(last, path)
        elif path[:2] == ".." and path[2:3] in ("", "/"):
            self.climbs = True


class EntryFile:
    """The entries of a file, mapped into memory.

    Attributes:
      summary: what they amount to.

    Raises:
      DamagedFileError: at once or when an entry is read: this is no such file.
    """

    def __init__(self, path: str | os.PathLike[str]):
        self._path = os.fspath(path)
        with open(path, "rb") as file:
            try:
                self._data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
                sizes = len(self._data) - _SIZES.size
                self._count, length = _SIZES.unpack_from(self._data, sizes)
                summary = sizes - length
                self.summary = msgspec.msgpack.decode(self._data[summary:sizes], type=Summary)
                bounds = np.dtype(np.int64)
                start = summary - bounds.itemsize * (self._count + 1)
                self._bounds = np.frombuffer(self._data, bounds, self._count + 1, start)
            # Also what the decoder raises is a ValueError.
            except (ValueError, OverflowError, struct.error):
                raise DamagedFileError(self._path) from None
        if self._bounds[-1] != start:
            raise DamagedFileError(self._path)

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, row: int) -> Entry:
        start, end = self._bounds[row : row + 2].tolist()
        try:
            return _decode(self._data[start:end])
        except ValueError:
            raise DamagedFileError(self._path) from None


class EntryWriter:
    """Writes entries to a file."""

    def __init__(self, file: BinaryIO, fingerprint: str):
        self._file = file
        self._lengths = array("q")
        self._summary = Summary(fingerprint)

    def write(self, entries: Sequence[Entry]) -> None:
        """Writes some more entries."""
        data = list(map(_encode, entries))
        self._file.write(b"".join(data))
        known = self._summary
        for row, entry in enumerate(entries, len(self._lengths)):
            label = entry.label
            # What most entries are needs no call: there may be millions.
            if entry.path[0] in "/.":
                known.add(row, entry)
            elif label is None:
                known.has_unlabelled = True
            elif not isinstance(label, int):
                known.add(row, entry)
            elif label > known.max_label:
                known.max_label = label
        self._lengths.extend(map(len, data))

    def finish(self) -> None:
        """Writes what ends the file."""
        summary = _encode(self._summary)
        bounds = np.zeros(len(self._lengths) + 1, np.int64)
        np.cumsum(np.frombuffer(self._lengths, np.int64), out=bounds[1:])
        self._file.write(bounds.data)
        self._file.write(summary + _SIZES.pack(len(self._lengths), len(summary)))


def remove_abandoned(folder: Path) -> None:
    """Removes files that processes of this machine were making when they were killed, and those of
    any machine that nobody has written to for a day."""
    for path in folder.glob(f"*{PARTIAL}"):
        host, _, number = path.name.removesuffix(PARTIAL).partition(".")[2].rpartition(".")
        is_dead = host == socket.gethostname() and not _is_running(number)
        with contextlib.suppress(OSError):
            if is_dead or time.time() - path.stat().st_mtime > _ABANDONED_SECONDS:
                path.unlink()


def _is_running(number: str) -> bool:
    try:
        os.kill(int(number), 0)
    except (ProcessLookupError, ValueError):
        return False
    # Another user's.
    except OSError:
        pass
    return True


@contextlib.contextmanager
def written(folder: Path, fingerprint: str) -> Iterator[tuple[Path, EntryWriter]]:
    """A new file under a temporary name, which is removed if the block fails."""
    path = folder / f"{uuid.uuid4().hex}.{socket.gethostname()}.{os.getpid()}{PARTIAL}"
    try:
        with path.open("wb") as file:
            writer = EntryWriter(file, fingerprint)
            yield path, writer
            writer.finish()
    except BaseException:
        path.unlink(missing_ok=True)
        raise
