"""Printing where the reader may leave: `| head` ends, a terminal is closed."""

import contextlib
import errno
import os
import sys
from collections.abc import Iterator
from typing import Any, TextIO, cast

# A pipe that nobody reads; a terminal that is gone.
_READER_LEFT = (errno.EPIPE, errno.EIO)


@contextlib.contextmanager
def without_reader() -> Iterator[None]:
    """Goes on where the reader of the output (`| head`) has left while the block prints something.

    What is printed from then on is dropped. For what is printed before files are written.
    """
    try:
        yield
        sys.stdout.flush()
    except OSError as error:
        if error.errno not in _READER_LEFT:
            raise
        drop(sys.stdout)


@contextlib.contextmanager
def lasting_stderr() -> Iterator[None]:
    """Lets messages, bars and logs of the block go nowhere once the reader of stderr has left."""
    # Python has none where file descriptor 2 was closed at the start.
    if sys.stderr is None:
        with open(os.devnull, "w", encoding="utf-8") as nowhere:
            with contextlib.redirect_stderr(nowhere):
                yield
        return
    with contextlib.redirect_stderr(cast(TextIO, _Lasting(sys.stderr))):
        yield


def drop(stream: TextIO) -> None:
    """Sends what is written from now on, and what waits to be, to the null device."""
    # Without this Python complains of the broken pipe once more at exit.
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)


class _Lasting:
    """A text stream whose reader may leave."""

    def __init__(self, stream: TextIO):
        self._stream = stream

    def write(self, text: str) -> int:
        """Writes the text, or drops it; returns its length."""
        with self._dropping():
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        """Writes what waits, or drops it."""
        with self._dropping():
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    @contextlib.contextmanager
    def _dropping(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if error.errno not in _READER_LEFT:
                raise
            drop(self._stream)
