"""Shards of encoded clips: a few large files instead of very many small ones (written by
`data.sources.shard_writer`).

A folder of shards holds ArrayRecord files and `index.json`, which states how many records, how many
bytes and which sha256 each of them has. A record is a clip: 4 bytes with the length of a JSON
object (little-endian), the object, and the clip's video file as it was, or the files of its images
one after the other. The object has the fields of `ClipRecord` but for the path, and `files`, the
lengths of the files.
"""

import contextlib
import dataclasses
import hashlib
import json
import os
import struct
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import msgspec
from array_record.python.array_record_module import ArrayRecordReader
from grain.sources import ArrayRecordDataSource

from internvideo_jax import config as configs
from internvideo_jax.data.annotations.entries import EntryError, check_frame_pattern
from internvideo_jax.data.annotations.records import ClipRecord
from internvideo_jax.data.decode.video import VideoError
from internvideo_jax.data.sources.source import SourceClip
from internvideo_jax.files import check_regular, parse_json, read_json

INDEX = "index.json"
FORMAT = "internvideo_jax clips 1"

_LENGTH = struct.Struct("<I")

Content = bytes | tuple[bytes, ...]


class ShardError(ValueError):
    """A folder of shards that is not as it was written."""


@dataclasses.dataclass(frozen=True)
class Shard:
    """One file.

    Attributes:
      name: in the folder.
      records: clips that it holds.
      bytes: its size.
      sha256: its checksum.

    Raises:
      ValueError: a name that leads out of the folder, or numbers below 0.
    """

    name: str
    records: int
    bytes: int
    sha256: str

    def __post_init__(self) -> None:
        if self.name in ("", ".", "..") or "/" in self.name or "\0" in self.name:
            raise ValueError(f"expected the name of a file in the folder, found {self.name!r}")
        if self.records < 0 or self.bytes < 0:
            raise ValueError(
                f"{self.name}: expected numbers from 0, found {self.records} records of"
                f" {self.bytes} bytes"
            )


@dataclasses.dataclass(frozen=True)
class ShardIndex:
    """What `index.json` holds: the shards in order, and which format they have."""

    shards: tuple[Shard, ...]
    format: str = FORMAT

    @property
    def num_records(self) -> int:
        """Clips in all shards."""
        return sum(shard.records for shard in self.shards)

    def digest(self) -> str:
        """Changes with the clips and their order."""
        return hashlib.sha256("".join(shard.sha256 for shard in self.shards).encode()).hexdigest()


def encode_clip(record: ClipRecord, content: Content) -> bytes:
    """The record of a clip in a shard.

    Args:
      record: what is known of it.
      content: its video file, or the files of its images.
    """
    files = (content,) if isinstance(content, bytes) else content
    known = {
        field.name: getattr(record, field.name)
        for field in dataclasses.fields(ClipRecord)
        if field.name != "path" and getattr(record, field.name) != field.default
    }
    known["files"] = [len(file) for file in files]
    if not isinstance(content, bytes):
        known["num_frames"] = len(files)
    header = json.dumps(known, ensure_ascii=False).encode()
    return b"".join((_LENGTH.pack(len(header)), header, *files))


def decode_clip(data: bytes) -> tuple[ClipRecord, Content]:
    """The inverse of `encode_clip`; the path of the record is its id.

    Raises:
      ValueError: not the record of a clip.
    """
    try:
        (length,) = _LENGTH.unpack_from(data)
        position = _LENGTH.size + length
        header = parse_json(data[_LENGTH.size : position], "header")
        record, sizes = _read_header(header)
        if position + sum(sizes) != len(data):
            raise ValueError("another size than it states")
    except (ValueError, struct.error) as error:
        raise ValueError(
            f"expected the record of a clip, found {len(data)} bytes ({error}); write the shards"
            " with `internvideo-jax shard`"
        ) from error
    files = []
    for size in sizes:
        files.append(data[position : position + size])
        position += size
    return record, files[0] if record.num_frames is None else tuple(files)


def _read_header(header: Any) -> tuple[ClipRecord, list[int]]:
    """What the JSON of a record states: the clip, and the lengths of its files.

    Raises:
      ValueError: anything else.
    """
    if not isinstance(header, dict):
        raise ValueError("a header that is no JSON object")
    sizes = msgspec.convert(header.pop("files", None), list[Annotated[int, msgspec.Meta(ge=0)]])
    record = record_from_json({**header, "path": header.get("id")})
    if record.caption_names and len(record.caption_names) != len(record.captions):
        raise ValueError(f"{len(record.captions)} captions with other than as many names")
    if len(sizes) != (1 if record.num_frames is None else record.num_frames) or not sizes:
        raise ValueError(f"{len(sizes)} files of {record.num_frames or 1}")
    if record.frame_pattern is not None:
        try:
            check_frame_pattern(record.frame_pattern)
        except EntryError as error:
            raise ValueError(f"{error.found} instead of {error.expected}") from None
    return record, sizes


def record_from_json(fields: Any) -> ClipRecord:
    """A record from its fields as JSON holds them, where tuples are lists.

    Raises:
      ValueError: fields of other types.
    """
    return msgspec.convert(fields, ClipRecord)


def read_index(directory: str | os.PathLike[str]) -> ShardIndex:
    """Reads `index.json` and checks that every shard is there with the size that it had.

    Raises:
      ShardError: no such folder, or a shard that is missing or has another size.
    """
    folder = Path(directory)
    path = folder / INDEX
    try:
        index = configs.from_dict(ShardIndex, read_json(path), str(path))
    except OSError as error:
        raise ShardError(
            f"{path}: expected a folder that `internvideo-jax shard` wrote, found no index"
            f" ({error.strerror}); a folder without it is incomplete"
        ) from error
    except ValueError as error:
        raise ShardError(f"{path}: expected the index of shards, found {error}") from error
    if index.format != FORMAT:
        raise ShardError(f"{path}: expected the format {FORMAT!r}, found {index.format!r}")
    wrong = [problem for shard in index.shards if (problem := _size_problem(folder, shard))]
    if wrong:
        raise ShardError(_misfits(folder, wrong))
    return index


def check_shards(directory: str | os.PathLike[str], *, workers: int = 1) -> ShardIndex:
    """Reads all shards and compares their checksums.

    Raises:
      ShardError: any of them is not as it was written; lists all such.
    """
    folder = Path(directory)
    index = read_index(folder)
    with ThreadPoolExecutor(workers) as pool:
        sums = pool.map(lambda shard: sha256(folder / shard.name), index.shards)
        wrong = [
            f"{shard.name}: expected sha256 {shard.sha256}, found {found}"
            for shard, found in zip(index.shards, sums, strict=True)
            if found != shard.sha256
        ]
    if wrong:
        raise ShardError(_misfits(folder, wrong))
    return index


class ShardSource:
    """The clips in a folder of shards.

    Attributes:
      index: of the folder.

    Raises:
      ShardError: the folder or any of its shards is not as it was written.
    """

    def __init__(self, directory: str | os.PathLike[str]):
        self._directory = os.fspath(directory)
        self.index = read_index(directory)
        folder = Path(directory).absolute()
        # Opening tells more than the size, and only here: what ArrayRecord cannot open later is to
        # it a file without records.
        with ThreadPoolExecutor(16) as pool:
            found = pool.map(lambda shard: _count_records(folder / shard.name), self.index.shards)
            wrong = [
                f"{shard.name}: expected {shard.records} records, found {count}"
                for shard, count in zip(self.index.shards, found, strict=True)
                if count != shard.records
            ]
        if wrong:
            raise ShardError(_misfits(folder, wrong))
        self._records = ArrayRecordDataSource(
            [
                _FileInstruction(str(folder / shard.name), 0, shard.records, shard.records)
                for shard in self.index.shards
            ]
        )

    def __len__(self) -> int:
        return self.index.num_records

    def __getitem__(self, index: int) -> SourceClip:
        """The clip of a number, with its files.

        Raises:
          VideoError: its record is damaged.
        """
        try:
            return SourceClip(*decode_clip(self._records[index]))
        # What ArrayRecord raises where a hash does not match.
        except RuntimeError as error:
            raise VideoError(
                f"{self._directory}: clip {index}",
                "an undamaged record",
                str(error),
                "compare the shards' checksums (`internvideo-jax shard --check`)",
            ) from error

    def digest(self) -> str:
        """Of the shards' checksums."""
        return self.index.digest()

    fingerprint = digest


class _FileInstruction(NamedTuple):
    """Which records of a file to read, as ArrayRecord wants to be told.

    Given a mere path it would count them again, and take brackets in it for a range.
    """

    filename: str
    skip: int
    take: int
    examples_in_shard: int


def _size_problem(folder: Path, shard: Shard) -> str | None:
    try:
        check_regular(folder / shard.name)
        size = (folder / shard.name).stat().st_size
    except OSError as error:
        return f"{shard.name}: {error.strerror}"
    except ValueError as error:
        return str(error)
    if size != shard.bytes:
        return f"{shard.name}: expected {shard.bytes} bytes, found {size}"
    return None


def _count_records(path: Path) -> int:
    reader = ArrayRecordReader(str(path))
    count: int = reader.num_records()
    # Only closing tells that it could not be opened.
    with contextlib.suppress(RuntimeError):
        reader.close()
    return count


def _misfits(folder: Path, wrong: Sequence[str]) -> str:
    lines = "".join(f"\n  {line}" for line in wrong)
    return f"{folder}: expected the shards that {INDEX} lists; copy these again:{lines}"


def sha256(path: Path) -> str:
    """Checksum of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
