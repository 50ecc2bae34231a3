"""Tells truncated video files: the size that a container's outermost chunks announce."""

from typing import BinaryIO


def announced_size(file: BinaryIO, file_size: int) -> int | None:
    """The size in bytes that a file's own header claims for it, or None where it claims none.

    A demuxer reaches the end of a truncated file without complaint, and half a video would pass
    for a short one; the outermost chunks of ISO media (mp4, mov), Matroska and AVI tell.

    Args:
      file: the file, opened in binary mode at its beginning.
      file_size: its size on disk.
    """
    head = file.read(64)
    if head[:4] == b"RIFF":
        size = int.from_bytes(head[4:8], "little")
        # Muxers that cannot seek leave 0 or all ones; others forget the 8 bytes of this header.
        return size if 0 < size < 2**32 - 1 else None
    if head[:4] == b"\x1a\x45\xdf\xa3":
        return _matroska_size(head)
    if head[4:8] in (b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide", b"moof", b"styp"):
        return _iso_size(file, file_size)
    return None


def _matroska_size(head: bytes) -> int | None:
    header, position = _ebml_number(head, 4)
    position += header or 0
    if header is None or head[position : position + 4] != b"\x18\x53\x80\x67":
        return None
    segment, position = _ebml_number(head, position + 4)
    return None if segment is None else position + segment


def _ebml_number(data: bytes, position: int) -> tuple[int | None, int]:
    """The variable-length integer at `position` (None if unknown or cut), and where it ends."""
    first = data[position] if position < len(data) else 0
    length = 9 - first.bit_length()
    end = position + length
    if first == 0 or end > len(data):
        return None, position
    bits = 7 * length
    value = int.from_bytes(data[position:end], "big") & (2**bits - 1)
    return (None if value == 2**bits - 1 else value), end


def _iso_size(file: BinaryIO, file_size: int) -> int | None:
    position = 0
    while position + 8 <= file_size:
        file.seek(position)
        head = file.read(16)
        size, kind = int.from_bytes(head[:4], "big"), head[4:8]
        if size == 1:
            size = int.from_bytes(head[8:16], "big")
        if size < 8 or not (kind.isalnum() and kind.isascii()):
            # 0 means "to the end of the file"; anything else is padding that players ignore.
            return None
        position += size
    return position
