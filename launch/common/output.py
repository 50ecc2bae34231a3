"""Standard output and error whose reader may leave (`| head`, a closed terminal)."""

import contextlib
import errno
import os
import select
import sys
from collections.abc import Iterator
from typing import Any, TextIO, cast

# A pipe that nobody reads; a terminal that is gone.
_READER_LEFT = (errno.EPIPE, errno.EIO)


@contextlib.contextmanager
def unread_output_dropped() -> Iterator[None]:
    """Lets the block go on to its own end where nobody reads its output or messages any more.

    What it prints from then on is dropped. Other errors of writing, as of a full disk, stay.
    """
    with (
        open(os.devnull, "w", encoding="utf-8") as nowhere,
        # Python has no stream where its descriptor was closed at the start (`>&-`).
        contextlib.redirect_stdout(cast(TextIO, _Output(sys.stdout or nowhere))),
        contextlib.redirect_stderr(cast(TextIO, _Output(sys.stderr or nowhere))),
    ):
        try:
            yield
        finally:
            with contextlib.suppress(OSError):
                sys.stdout.flush()


def has_reader() -> bool:
    """Whether standard output is not a pipe that nobody reads any more."""
    if isinstance(sys.stdout, _Output) and sys.stdout.is_dropped:
        return False
    poll = select.poll()
    try:
        poll.register(sys.stdout.fileno(), 0)
    except OSError:
        # Of a notebook or a test.
        return True
    return not poll.poll(0)


class _Output:
    """A text stream, without an error where nobody reads it.

    Attributes:
      is_dropped: whether its reader has left.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self.is_dropped = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Writes the text, or drops it; returns its length."""
        with self._dropping():
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        """Writes what waits, or drops it."""
        with self._dropping():
            self._stream.flush()

    @contextlib.contextmanager
    def _dropping(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if error.errno not in _READER_LEFT:
                raise
            self.is_dropped = True
            # What is buffered still has to go somewhere, and Python complains once more at exit.
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())
            os.close(nowhere)
