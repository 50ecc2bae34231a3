"""Tells truncated media files: by the size that a container announces, or by its last chunk.

A demuxer reaches the end of a truncated file without complaint, and half a video would pass for a
short one. Of streams that may end anywhere (MPEG-TS and PS, elementary streams, AAC, Matroska from
a live source, fragmented MP4 cut between two fragments), nothing tells.
"""

import os
import struct
from collections.abc import Callable
from typing import BinaryIO

# Of a walk through the chunks of a file: half a GB of GIF. Longer ones are not looked through.
_MAX_CHUNKS = 2_000_000
_HEAD_BYTES = 2**16

_ASF_HEADER = bytes.fromhex("3026b2758e66cf11a6d900aa0062ce6c")
_ASF_PROPERTIES = bytes.fromhex("a1dcab8c47a9cf118ee400c00c205365")


def truncation(file: BinaryIO, file_size: int) -> str | None:
    """What shows that a file was cut; None if nothing does.

    Args:
      file: the file, opened in binary mode.
      file_size: its size on disk.
    """
    file.seek(0)
    announced = announced_size(file, file_size)
    if announced is not None and announced > file_size:
        return f"its header announces {announced} bytes, it has {file_size}"
    file.seek(0)
    is_cut = _WALKS.get(file.read(4)[:3])
    file.seek(0)
    if is_cut is not None and is_cut(file, file_size):
        return f"its {file_size} bytes end inside a chunk, or without the last one"
    return None


def announced_size(file: BinaryIO, file_size: int) -> int | None:
    """The size in bytes that a file's own header claims for it, or None where it claims none.

    The outermost chunks of ISO media (mp4, mov), Matroska and AVI tell, and fields in the headers
    of ASF, FLV and MP3.

    Args:
      file: the file, opened in binary mode at its beginning.
      file_size: its size on disk.
    """
    head = file.read(_HEAD_BYTES)
    if head[:4] == b"RIFF":
        size = int.from_bytes(head[4:8], "little")
        # Muxers that cannot seek leave 0 or all ones; others forget the 8 bytes of this header.
        return size if 0 < size < 2**32 - 1 else None
    if head[:4] == b"\x1a\x45\xdf\xa3":
        return _matroska_size(head)
    if head[:16] == _ASF_HEADER:
        return _asf_size(head)
    if head[:3] == b"FLV":
        return _flv_size(head)
    if head[:3] == b"ID3" or head[:1] == b"\xff":
        return _mp3_size(file, head)
    if head[4:8] in (b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide", b"moof", b"styp"):
        return _iso_size(file, file_size)
    return None


def _asf_size(head: bytes) -> int | None:
    start = head.find(_ASF_PROPERTIES)
    fields = head[start : start + 92]
    # A live stream has no size.
    if start < 0 or len(fields) < 92 or fields[88] & 1:
        return None
    return int.from_bytes(fields[40:48], "little") or None


def _flv_size(head: bytes) -> int | None:
    """The number "filesize" of the metadata, if a muxer has filled it in."""
    start = head.find(b"\x00\x08filesize\x00")
    field = head[start + 11 : start + 19]
    if start < 0 or len(field) < 8:
        return None
    (size,) = struct.unpack(">d", field)
    return int(size) if 0 < size < 2**63 else None


def _mp3_size(file: BinaryIO, head: bytes) -> int | None:
    """The bytes of all frames, as the header in the first one states them for its player."""
    start = 0
    if head[:3] == b"ID3" and len(head) >= 10:
        # Seven bits of each of four bytes.
        start = 10
        for shift, byte in zip((21, 14, 7, 0), head[6:10], strict=True):
            start += (byte & 127) << shift
        file.seek(start)
        head = file.read(256)
    tag = max(head.find(b"Xing", 0, 256), head.find(b"Info", 0, 256))
    flags, rest = head[tag + 7 : tag + 8], head[tag + 8 :]
    if tag < 0 or not flags or not flags[0] & 2:
        return None
    size = rest[4:8] if flags[0] & 1 else rest[:4]
    return start + int.from_bytes(size, "big") if len(size) == 4 else None


def _is_cut_gif(file: BinaryIO, file_size: int) -> bool:
    def skip_table(flags: int) -> None:
        file.seek(3 * 2 ** ((flags & 7) + 1) if flags & 0x80 else 0, os.SEEK_CUR)

    head = file.read(13)
    if len(head) < 13:
        return True
    skip_table(head[10])
    length = 0
    for _ in range(_MAX_CHUNKS):
        if length:
            file.seek(length, os.SEEK_CUR)
        elif (kind := file.read(1)) == b"!":
            file.seek(1, os.SEEK_CUR)
        elif kind == b",":
            descriptor = file.read(9)
            if len(descriptor) < 9:
                return True
            skip_table(descriptor[8])
            file.seek(1, os.SEEK_CUR)
        else:
            # The trailer, or damage that the decoder may judge.
            return not kind
        following = file.read(1)
        if not following:
            return True
        length = following[0]
    return False


def _is_cut_flv(file: BinaryIO, file_size: int) -> bool:
    position = int.from_bytes(file.read(9)[5:9], "big") + 4
    for _ in range(_MAX_CHUNKS):
        file.seek(position)
        head = file.read(11)
        if not head or (len(head) == 11 and head[0] & 31 not in (8, 9, 18)):
            return False
        # The chunk's size stands behind it again.
        position += 11 + int.from_bytes(head[1:4], "big") + 4
        if len(head) < 11 or position > file_size:
            return True
    return False


def _is_cut_ogg(file: BinaryIO, file_size: int) -> bool:
    position = 0
    for _ in range(_MAX_CHUNKS):
        file.seek(position)
        head = file.read(27)
        if not head or (len(head) == 27 and head[:4] != b"OggS"):
            return False
        sizes = file.read(head[26]) if len(head) == 27 else b""
        position += len(head) + len(sizes) + sum(sizes)
        if len(head) < 27 or len(sizes) < head[26] or position > file_size:
            return True
    return False


# By the first three bytes.
_WALKS: dict[bytes, Callable[[BinaryIO, int], bool]] = {
    b"GIF": _is_cut_gif,
    b"FLV": _is_cut_flv,
    b"Ogg": _is_cut_ogg,
}


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
