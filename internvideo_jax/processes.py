"""Helper processes: they end with the process that started them, and leave signals to it."""

import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator


def end_with_parent() -> None:
    """Ends this process as soon as the one that started it is gone, however that ended.

    To be called in a process that multiprocessing spawned. Python's resource tracker then sees that
    nobody is left, and frees their shared memory.
    """
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def watch() -> None:
        parent.join()
        # Nobody waits for what this process does, and cleaning up could wait for the parent.
        os._exit(1)

    threading.Thread(target=watch, name="parent-watch", daemon=True).start()


@contextlib.contextmanager
def signals_left_to_parent() -> Iterator[None]:
    """Blocks SIGINT and SIGTERM in this thread; what it starts inherits that.

    A terminal sends Ctrl-C to all processes of a command, some launchers send SIGTERM alike. In a
    thread other than the main one this changes nothing else, as Python's handlers run in that.
    """
    previous = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, previous)
