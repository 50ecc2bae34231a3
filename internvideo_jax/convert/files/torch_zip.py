"""The zip container of `torch.save`: where each record's bytes lie, checked before any is read.

PyTorch stores its records uncompressed, so that a tensor is a plain range of the file. Anything
else (compressed records, records that overlap or reach past the end) does not come from PyTorch
and is refused: it is how archives are made that unpack to more than they hold.

Source: PKWARE APPNOTE 6.3.10, sections 4.3 (records) and 4.5.3 (zip64 sizes).
"""

import struct
from pathlib import Path
from typing import BinaryIO, NamedTuple

from internvideo_jax.convert.files.checkpoint import CheckpointError

MAGIC = b"PK\x03\x04"

_MAX_RECORDS = 1_000_000
_MAX_DIRECTORY_BYTES = 256 << 20
_MAX_COMMENT = 0xFFFF
_STORED = 0
_ENCRYPTED = 0x1
_ZIP64_EXTRA = 0x0001

_END = struct.Struct("<4s4H2LH")
_END64_LOCATOR = struct.Struct("<4sLQL")
_END64 = struct.Struct("<4sQ2H2L4Q")
_CENTRAL = struct.Struct("<4s6H3L5H2L")
_LOCAL = struct.Struct("<4s5H3L2H")


class Record(NamedTuple):
    """The bytes of one zip member, in the archive's file."""

    offset: int
    size: int


def read_records(path: Path) -> dict[str, Record]:
    """Returns name -> place of every record of the zip at `path`, in the archive's order.

    Raises:
      CheckpointError: truncated, damaged, compressed, encrypted, overlapping or oversized.
    """
    try:
        with open(path, "rb") as file:
            file_size = file.seek(0, 2)
            count, start, size = _locate_directory(file, file_size)
            if count > _MAX_RECORDS or size > _MAX_DIRECTORY_BYTES:
                raise CheckpointError(
                    f"its directory claims {count} records in {size} bytes; at most "
                    f"{_MAX_RECORDS} records in {_MAX_DIRECTORY_BYTES} bytes are read"
                )
            if start + size > file_size:
                raise CheckpointError("its directory reaches past the end of the file")
            file.seek(start)
            members = _parse_directory(file.read(size), count)
            return _locate_data(file, members, start)
    except (CheckpointError, struct.error) as error:
        raise CheckpointError(
            f"{path} ({path.stat().st_size} bytes) is not a readable PyTorch file: {error}"
        ) from None


class _Member(NamedTuple):
    name: bytes
    header: int
    size: int


def _locate_directory(file: BinaryIO, file_size: int) -> tuple[int, int, int]:
    """Returns (number of members, start, size in bytes) of the central directory."""
    tail_start = max(0, file_size - _END.size - _MAX_COMMENT)
    file.seek(tail_start)
    tail = file.read()
    position = len(tail) - _END.size
    while position >= 0:
        position = tail.rfind(b"PK\x05\x06", 0, position + 4)
        if position < 0:
            break
        end = _END.unpack_from(tail, position)
        if position + _END.size + end[-1] == len(tail):
            break
        position -= 1
    if position < 0:
        raise CheckpointError(
            "the end of its directory is missing, as after an interrupted download or copy; "
            "fetch it again"
        )
    count, size, start = end[4], end[5], end[6]
    locator_start = tail_start + position - _END64_LOCATOR.size
    if locator_start >= 0:
        file.seek(locator_start)
        magic, _, end64_start, _ = _END64_LOCATOR.unpack(file.read(_END64_LOCATOR.size))
        if magic == b"PK\x06\x07":
            file.seek(min(end64_start, file_size))
            end64 = _END64.unpack(file.read(_END64.size))
            if end64[0] != b"PK\x06\x06":
                raise CheckpointError("its zip64 directory record is damaged")
            count, size, start = end64[7], end64[8], end64[9]
    return count, start, size


def _parse_directory(directory: bytes, count: int) -> list[_Member]:
    members = []
    position = 0
    for _ in range(count):
        fields = _CENTRAL.unpack_from(directory, position)
        magic, flags, method = fields[0], fields[3], fields[4]
        packed, size = fields[8], fields[9]
        name_size, extra_size, comment_size, header = *fields[10:13], fields[16]
        name_start = position + _CENTRAL.size
        extra_start = name_start + name_size
        position = extra_start + extra_size + comment_size
        if magic != b"PK\x01\x02" or position > len(directory):
            raise CheckpointError("its directory is damaged")
        name = directory[name_start:extra_start]
        extra = directory[extra_start : extra_start + extra_size]
        size, packed, header = _widen(extra, size, packed, header)
        if method != _STORED or flags & _ENCRYPTED or packed != size:
            raise CheckpointError(
                f"record {_text(name)!r} is compressed or encrypted ({packed} bytes that claim to "
                f"unpack to {size}), which PyTorch never does; save it again with torch.save"
            )
        members.append(_Member(name, header, size))
    return members


def _widen(extra: bytes, *values: int) -> list[int]:
    """Replaces each 32-bit value that is all ones by its 64-bit one from the zip64 extra field."""
    wide = list(values)
    position = 0
    while position + 4 <= len(extra):
        kind, length = struct.unpack_from("<HH", extra, position)
        position += 4
        if kind == _ZIP64_EXTRA:
            for index, value in enumerate(values):
                if value == 0xFFFFFFFF:
                    (wide[index],) = struct.unpack_from("<Q", extra, position)
                    position += 8
            break
        position += length
    return wide


def _locate_data(file: BinaryIO, members: list[_Member], limit: int) -> dict[str, Record]:
    """Follows every member to its local header; `limit` is where the central directory starts."""
    records: dict[str, Record] = {}
    previous_end = 0
    for member in sorted(members, key=lambda member: member.header):
        name = _text(member.name)
        file.seek(min(member.header, limit))
        local = _LOCAL.unpack(file.read(_LOCAL.size))
        name_size, extra_size = local[9], local[10]
        start = member.header + _LOCAL.size + name_size + extra_size
        if local[0] != MAGIC or file.read(name_size) != member.name:
            raise CheckpointError(f"record {name!r} is not where the directory says")
        if start + member.size > limit:
            raise CheckpointError(f"record {name!r} of {member.size} bytes reaches past its end")
        if member.header < previous_end:
            raise CheckpointError(f"record {name!r} overlaps the one before it")
        if name in records:
            raise CheckpointError(f"record {name!r} occurs twice")
        records[name] = Record(start, member.size)
        previous_end = start + member.size
    return records


def _text(name: bytes) -> str:
    return name.decode("utf-8", "replace")
