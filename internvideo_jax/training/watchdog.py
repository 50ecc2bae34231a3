"""The end of a process that gets no further: it says where its threads are.

Of a run in several processes all wait for one that hangs, so that all of them end, each with where
it waits. Whoever started them starts them again.
"""

import contextlib
import faulthandler
import os
import sys
import threading
import time
from typing import Self

# Seconds between two looks.
_POLL = 1.0
# Seconds in which the others can say where they are, before the end of this process ends them.
_GRACE = 10.0
# That of an error which nobody catches.
_EXIT_CODE = 1
_STDERR = 2


class Watchdog:
    """Ends the process if nothing is begun for long; a context manager, in whose block that holds.

    A thread looks for it. Where native code keeps all of Python waiting, that thread cannot, and a
    timer of the interpreter's own ends the process.
    """

    def __init__(self, seconds: float, name: str):
        """Looks for nothing yet.

        Args:
          seconds: after which what was begun last counts as hanging.
          name: of the process, for messages.
        """
        self._seconds, self._name = seconds, name
        self._task, self._since = "starting", time.monotonic()
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def begin(self, task: str) -> None:
        """Notes that the process gets on, and what it is at from now on."""
        self._task, self._since = task, time.monotonic()

    def __enter__(self) -> Self:
        self._since = time.monotonic()
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._is_over.set()
        self._thread.join()

    def _watch(self) -> None:
        try:
            while not self._is_over.wait(_POLL):
                # Put off as long as Python runs.
                faulthandler.dump_traceback_later(
                    self._seconds + 2 * _GRACE, exit=True, file=_STDERR
                )
                if time.monotonic() - self._since > self._seconds:
                    self._end()
        finally:
            faulthandler.cancel_dump_traceback_later()

    def _end(self) -> None:
        # Nobody may read it any more.
        with contextlib.suppress(OSError, ValueError):
            print(
                f"{self._name} has been at {self._task!r} for {self._seconds:g} s: it ends, and"
                " with it the others; its threads are here:",
                file=sys.stderr,
                flush=True,
            )
        faulthandler.dump_traceback(file=_STDERR)
        time.sleep(_GRACE)
        os._exit(_EXIT_CODE)
