"""The zip container of `torch.save`: where each record's bytes lie, checked before any is read.

PyTorch stores its records uncompressed, so that a tensor is a plain range of the file. Python's
`zipfile` reads the directory; anything in it that PyTorch does not write (compressed records,
records that overlap or reach past the end) is refused: it is how archives are made that unpack to
more than they hold.
"""

import io
import struct
import zipfile
from pathlib import Path
from typing import BinaryIO, NamedTuple

from internvideo_jax.convert.files.checkpoint import CheckpointError

MAGIC = b"PK\x03\x04"

_MAX_RECORDS = 1_000_000
_MAX_DIRECTORY_BYTES = 256 << 20
_ENCRYPTED = 0x1
_LOCAL = struct.Struct("<4s5H3L2H")


class Record(NamedTuple):
    """The bytes of one zip member, in the archive's file."""

    offset: int
    size: int


class _Bounded(io.FileIO):
    """A file of which no more is read at once than a directory may have."""

    def read(self, size: int | None = -1) -> bytes:
        if size is not None and size > _MAX_DIRECTORY_BYTES:
            raise CheckpointError(
                f"its directory claims {size} bytes; at most {_MAX_DIRECTORY_BYTES} are read"
            )
        return super().read(-1 if size is None else size) or b""


def read_records(path: Path) -> dict[str, Record]:
    """Returns name -> place of every record of the zip at `path`, in the archive's order.

    Raises:
      CheckpointError: truncated, damaged, compressed, encrypted, overlapping or oversized.
    """
    try:
        with _Bounded(path) as file, zipfile.ZipFile(file) as archive:
            members = archive.infolist()
            if len(members) > _MAX_RECORDS:
                raise CheckpointError(
                    f"its directory has {len(members)} records; at most {_MAX_RECORDS} are read"
                )
            return _locate(file, members, archive.start_dir)
    except zipfile.BadZipFile as error:
        reason = (
            f"its directory is missing or damaged ({error}), as after an interrupted download or"
            " copy; fetch it again"
        )
    # What `zipfile` lets through of headers that lie.
    except (CheckpointError, struct.error, ValueError, NotImplementedError, OSError) as error:
        reason = str(error)
    raise CheckpointError(
        f"{path} ({path.stat().st_size} bytes) is not a readable PyTorch file: {reason}"
    )


def _locate(file: BinaryIO, members: list[zipfile.ZipInfo], limit: int) -> dict[str, Record]:
    """Follows every member to its local header; `limit` is where the central directory starts."""
    records: dict[str, Record] = {}
    previous_end = 0
    for member in sorted(members, key=lambda member: member.header_offset):
        name = member.orig_filename
        packed, size = member.compress_size, member.file_size
        is_encrypted = bool(member.flag_bits & _ENCRYPTED)
        if member.compress_type != zipfile.ZIP_STORED or is_encrypted or packed != size:
            raise CheckpointError(
                f"record {name!r} is compressed or encrypted ({packed} bytes that claim to unpack"
                f" to {size}), which PyTorch never does; save it again with torch.save"
            )
        if not 0 <= member.header_offset < limit:
            raise CheckpointError(f"record {name!r} is not where the directory says")
        file.seek(member.header_offset)
        local = _LOCAL.unpack(file.read(_LOCAL.size))
        encoding = "utf-8" if local[2] & 0x800 else "cp437"
        start = member.header_offset + _LOCAL.size + local[9] + local[10]
        if local[0] != MAGIC or file.read(local[9]).decode(encoding, "replace") != name:
            raise CheckpointError(f"record {name!r} is not where the directory says")
        if start + size > limit:
            raise CheckpointError(f"record {name!r} of {size} bytes reaches past its end")
        if member.header_offset < previous_end:
            raise CheckpointError(f"record {name!r} overlaps the one before it")
        if name in records:
            raise CheckpointError(f"record {name!r} occurs twice")
        records[name] = Record(start, size)
        previous_end = start + size
    return records
