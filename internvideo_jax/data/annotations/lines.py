"""Reading annotation files entry by entry: never more in memory than one entry may have."""

import codecs
import json
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from internvideo_jax.data.annotations.entries import EntryError, quote

# Longer than any caption: what is longer is no annotation.
MAX_ENTRY_BYTES = 2**20
# What is read at a time of a JSON list, which may be one line.
PIECE_BYTES = 2**20
# Lines are read together: enough of them for one call to cost nothing, few enough to hold.
BLOCK_BYTES = 2**16


_SPACE = re.compile(r"[ \t\n\r]*")


class _Repeating(dict[str, Any]):
    """A JSON object with a key that occurs several times."""

    key = ""


def _json_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) == len(pairs):
        return fields
    repeating = _Repeating(fields)
    repeating.key = Counter(key for key, _ in pairs).most_common(1)[0][0]
    return repeating


def _flawless_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = _json_object(pairs)
    if isinstance(fields, _Repeating):
        raise _repeats(fields)
    return fields


# An item of a list may have repeating keys in what is not read of it; a line has nothing of that.
_DECODER = json.JSONDecoder(object_pairs_hook=_json_object)
_LINE_DECODER = json.JSONDecoder(object_pairs_hook=_flawless_object)


_BYTE_ORDER_MARKS = (codecs.BOM_UTF32_LE, codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


def check_encoding(path: str) -> None:
    """Refuses what is in UTF-16 or UTF-32, as some systems save text.

    Raises:
      EntryError: such a file.
    """
    with Path(path).open("rb") as file:
        head = file.read(len(codecs.BOM_UTF32_LE))
    if head.startswith(_BYTE_ORDER_MARKS):
        raise EntryError("UTF-8 text", "UTF-16 or UTF-32; save it as UTF-8")


def read_blocks(path: str) -> Iterator[tuple[int, bytes]]:
    """All lines of a file, many at a time, each with its end; before them the first one's number.

    Of a line that is too long, only the beginning is there.
    """
    number = 1
    with Path(path).open("rb") as file:
        while data := file.read(BLOCK_BYTES):
            if not data.endswith(b"\n"):
                rest = file.readline(MAX_ENTRY_BYTES + 1)
                data += rest
                while len(rest) > MAX_ENTRY_BYTES and not rest.endswith(b"\n"):
                    rest = file.readline(MAX_ENTRY_BYTES + 1)
            if number == 1:
                data = data.removeprefix(codecs.BOM_UTF8)
            if not data.endswith(b"\n"):
                data += b"\n"
            yield number, data
            number += data.count(b"\n")


def read_lines(path: str) -> Iterator[tuple[int, str | EntryError]]:
    """The lines of a file with their numbers, as `split_lines` has them."""
    for number, block in read_blocks(path):
        yield from split_lines(number, block)


def split_lines(number: int, block: bytes) -> Iterator[tuple[int, str | EntryError]]:
    """The lines of a block of UTF-8 text that are not blank, with their numbers."""
    for line, data in enumerate(block.split(b"\n"), number):
        if len(data) > MAX_ENTRY_BYTES:
            yield line, _too_long("a line")
            continue
        try:
            # Tabs may stand for empty columns.
            text = data.decode().strip(" \r\n")
        except UnicodeDecodeError as error:
            yield line, _not_utf8(error)
            continue
        if "\r" in text:
            yield line, EntryError("lines that end in a line feed", "a carriage return in one")
        elif "\0" in text:
            yield line, EntryError("UTF-8 text", "a zero byte, as of UTF-16; save it as UTF-8")
        elif text.strip():
            yield line, text


def read_items(path: str) -> Iterator[tuple[int, Any]]:
    """The items of a JSON list with the lines that they begin on.

    An error in the JSON itself is the last item: what follows it cannot be made out.
    """
    with Path(path).open("rb") as file:
        text = _JsonText(file)
        try:
            text.take("[")
            if text.next_character() != "]":
                yield text.line, _item(text.value())
                while text.next_character() == ",":
                    text.take(",")
                    text.next_character()
                    yield text.line, _item(text.value())
            text.take("]")
            text.take("")
        except EntryError as error:
            yield text.line, error


def parse_json(line: str) -> Any:
    """The value of one line of JSON.

    Raises:
      EntryError: it is none, or an object somewhere in it has a key several times.
    """
    try:
        return _LINE_DECODER.decode(line)
    except (ValueError, RecursionError) as error:
        raise _not_json(error) from None


def _item(value: Any) -> Any:
    """A JSON value, or what is wrong with it."""
    return _repeats(value) if isinstance(value, _Repeating) else value


def _repeats(value: _Repeating) -> EntryError:
    return EntryError("each key once", f"{quote(value.key)} twice")


class _JsonText:
    """The text of a JSON file, read piece by piece."""

    def __init__(self, file: BinaryIO):
        self._file = file
        self._decode = codecs.getincrementaldecoder("utf-8-sig")().decode
        self._scan = _DECODER.raw_decode
        self._text = ""
        self._position = 0
        self._num_counted = 0
        self._line = 1
        self._is_complete = False

    @property
    def line(self) -> int:
        """The line of the place that has been reached."""
        self._line += self._text.count("\n", self._num_counted, self._position)
        self._num_counted = self._position
        return self._line

    def next_character(self) -> str:
        """The next character that is no white space; "" at the end."""
        while True:
            space = _SPACE.match(self._text, self._position)
            assert space is not None
            self._position = space.end()
            if self._position < len(self._text):
                return self._text[self._position]
            if self._is_complete:
                return ""
            self._read_on()

    def take(self, wanted: str) -> None:
        """Goes past a character; "" is the end of the file."""
        if self.next_character() != wanted:
            expected = f"{wanted!r} of a JSON list" if wanted else "the end after the list"
            rest = self._text[self._position :]
            raise EntryError(expected, quote(rest) if rest else "the end of the file")
        self._position += len(wanted)

    def value(self) -> Any:
        """Goes past a value."""
        while True:
            try:
                value, end = self._scan(self._text, self._position)
            except (ValueError, RecursionError) as error:
                if self._is_complete or not _may_go_on(error, self._text):
                    raise _not_json(error) from None
            else:
                # A number that ends with this piece of text may go on in the next.
                if end < len(self._text) or self._is_complete:
                    self._position = end
                    return value
            if len(self._text) - self._position > MAX_ENTRY_BYTES:
                raise _too_long("an item")
            self._read_on()

    def _read_on(self) -> None:
        line = self.line
        data = self._file.read(PIECE_BYTES)
        try:
            text = self._decode(data, final=not data)
        except UnicodeDecodeError as error:
            raise _not_utf8(error) from None
        self._text = self._text[self._position :] + text
        self._line, self._num_counted, self._position = line, 0, 0
        self._is_complete = not data


def _may_go_on(error: Exception, text: str) -> bool:
    """Whether a JSON value may be wrong only for want of the text that follows."""
    return isinstance(error, json.JSONDecodeError) and (
        error.msg.startswith("Unterminated string")
        # The longest literal, "-Infinity", or an escape may be cut.
        or error.pos >= len(text) - len("-Infinity")
    )


def _not_json(error: Exception) -> EntryError:
    if isinstance(error, json.JSONDecodeError):
        start = max(error.pos - 20, 0)
        return EntryError("JSON", f"{error.msg} near {quote(error.doc[start : error.pos + 20])}")
    return EntryError("JSON", "values nested too deeply or numbers too long")


def _not_utf8(error: UnicodeDecodeError) -> EntryError:
    return EntryError("UTF-8 text", f"the byte {error.object[error.start]:#04x}")


def _too_long(what: str) -> EntryError:
    return EntryError(f"{what} of at most {MAX_ENTRY_BYTES} bytes", "a longer one")
