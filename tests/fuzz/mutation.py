"""Changes to files such as accidents and attackers make, reproducible by a seed."""

import random
import re
from collections.abc import Callable, Sequence

# Of inputs after mutation; seeds are to be much smaller.
MAX_BYTES = 1 << 17

_SIZES = (1, 1, 2, 4, 8, 16, 64, 256)
_BYTES = (0x00, 0x01, 0x7F, 0x80, 0xFF, 0x20, 0x2E, 0x30, 0x5B, 0x7B, 0x28, 0x7D, 0x85)
_WHOLE = (0, 1, 2, 127, 128, 255, 256, 4095, 2**16, 2**31 - 1, 2**31, 2**32 - 1, 2**62, 2**63, -1)
_WRITTEN = (
    *(b"0", b"1", b"-1", b"2", b"1000000007", b"2147483648", b"-9223372036854775808"),
    *(b"18446744073709551616", b"1" + b"0" * 400, b"1e308", b"1e-320", b"0.5", b"NaN"),
    *(b"null", b"true", b"[]", b"{}", b'""', b'"../x"', b"[[[]]]"),
)

Mutation = Callable[[bytearray, random.Random, Sequence[bytes], Sequence[bytes]], None]


def mutate(
    source: random.Random, data: bytes, others: Sequence[bytes], tokens: Sequence[bytes] = ()
) -> bytes:
    """Returns `data` after one to sixteen changes, or more until it is another.

    Args:
      source: of all choices.
      data: the input to change.
      others: inputs of which pieces are put in.
      tokens: words of the format, which chance would hardly find.
    """
    changed = bytearray(data)
    left = source.choice((1, 1, 1, 2, 2, 3, 4, 8, 16))
    while left > 0 or changed == data:
        source.choice(_MUTATIONS)(changed, source, others, tokens)
        del changed[MAX_BYTES:]
        left -= 1
    return bytes(changed)


def _span(data: bytearray, source: random.Random) -> slice:
    start = source.randrange(len(data) + 1)
    return slice(start, start + source.choice(_SIZES))


def _flip_bit(data: bytearray, source: random.Random, *_: object) -> None:
    if data:
        data[source.randrange(len(data))] ^= 1 << source.randrange(8)


def _set_byte(data: bytearray, source: random.Random, *_: object) -> None:
    if data:
        data[source.randrange(len(data))] = source.choice((*_BYTES, source.randrange(256)))


def _set_integer(data: bytearray, source: random.Random, *_: object) -> None:
    size = source.choice((2, 4, 8))
    start = source.randrange(len(data) + 1)
    value = source.choice((*_WHOLE, len(data), start)) % (1 << 8 * size)
    data[start : start + size] = value.to_bytes(size, source.choice(("little", "big")))


def _set_number(data: bytearray, source: random.Random, *_: object) -> None:
    if found := list(re.finditer(rb"-?\d+(\.\d+)?", data)):
        data[slice(*source.choice(found).span())] = source.choice(_WRITTEN)


def _delete(data: bytearray, source: random.Random, *_: object) -> None:
    del data[_span(data, source)]


def _cut(data: bytearray, source: random.Random, *_: object) -> None:
    del data[source.randrange(len(data) + 1) :]


def _repeat(data: bytearray, source: random.Random, *_: object) -> None:
    span = _span(data, source)
    times = source.choice((2, 2, 3, 10, 100, 3000))
    data[span] = bytes(data[span]) * times


def _insert_noise(data: bytearray, source: random.Random, *_: object) -> None:
    start = source.randrange(len(data) + 1)
    data[start:start] = source.randbytes(source.choice(_SIZES))


def _insert_token(
    data: bytearray, source: random.Random, _: Sequence[bytes], tokens: Sequence[bytes]
) -> None:
    start = source.randrange(len(data) + 1)
    end = start + source.choice((0, 0, 1, 4, 16))
    data[start:end] = source.choice((*tokens, *_WRITTEN))


def _splice(
    data: bytearray, source: random.Random, others: Sequence[bytes], _: Sequence[bytes]
) -> None:
    other = source.choice(others)
    start = source.randrange(len(other) + 1)
    piece = other[start : start + source.choice((4, 16, 64, 256, len(other)))]
    at = source.randrange(len(data) + 1)
    data[at : at + source.choice((0, len(piece)))] = piece


def _move(data: bytearray, source: random.Random, *_: object) -> None:
    span = _span(data, source)
    piece = bytes(data[span])
    del data[span]
    at = source.randrange(len(data) + 1)
    data[at:at] = piece


_MUTATIONS: tuple[Mutation, ...] = (
    *(_flip_bit, _set_byte, _set_integer, _set_number, _delete, _cut, _repeat, _insert_noise),
    *(_insert_token, _splice, _move),
)
