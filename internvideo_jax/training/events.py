"""TensorBoard event files of scalars, without TensorFlow."""

import os
import struct
import time
from collections.abc import Mapping
from pathlib import Path


class EventWriter:
    """Appends scalars to a new event file.

    The format is a sequence of records (length, its masked CRC-32C, payload, its masked CRC-32C),
    each payload a protocol-buffer message `tensorflow.Event`.
    """

    def __init__(self, directory: Path, start_step: int) -> None:
        """Starts a file; TensorBoard drops what earlier files have from `start_step` on."""
        directory.mkdir(parents=True, exist_ok=True)
        now = time.time()
        # TensorBoard reads the files of a folder in the order of their names.
        name = f"events.out.tfevents.{int(now):010d}.{os.getpid()}"
        self._file = (directory / name).open("ab")
        self._record(_double(1, now) + _bytes(3, b"brain.Event:2"))
        if start_step:
            # SessionLog.START: the run goes on from here.
            self._record(_double(1, now) + _int(2, start_step + 1) + _bytes(7, _int(1, 1)))

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Adds scalars of one step."""
        summary = b"".join(
            _bytes(1, _bytes(1, name.encode()) + _key(2, 5) + struct.pack("<f", value))
            for name, value in values.items()
        )
        self._record(_double(1, time.time()) + _int(2, step) + _bytes(5, summary))
        self._file.flush()

    def close(self) -> None:
        """Closes the file."""
        self._file.close()

    def _record(self, payload: bytes) -> None:
        length = struct.pack("<Q", len(payload))
        self._file.write(length + _masked_crc(length) + payload + _masked_crc(payload))


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def _key(field: int, wire_type: int) -> bytes:
    return _varint(field << 3 | wire_type)


def _int(field: int, value: int) -> bytes:
    return _key(field, 0) + _varint(value)


def _double(field: int, value: float) -> bytes:
    return _key(field, 1) + struct.pack("<d", value)


def _bytes(field: int, value: bytes) -> bytes:
    return _key(field, 2) + _varint(len(value)) + value


def _crc_table() -> list[int]:
    """CRC-32C (Castagnoli) of each byte, polynomial 0x1EDC6F41 with its bits reversed."""
    table = []
    for byte in range(256):
        for _ in range(8):
            byte = byte >> 1 ^ (0x82F63B78 if byte & 1 else 0)
        table.append(byte)
    return table


_CRC_TABLE = _crc_table()


def _masked_crc(data: bytes) -> bytes:
    crc = 0xFFFFFFFF
    for byte in data:
        crc = _CRC_TABLE[(crc ^ byte) & 0xFF] ^ crc >> 8
    crc ^= 0xFFFFFFFF
    return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)
