"""Helper processes: they end with the process that started them, and leave signals to it."""

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from multiprocessing import parent_process, resource_tracker


def end_with_parent() -> None:
    """Ends this process as soon as the one that started it is gone, however that ended.

    To be called in a process that multiprocessing spawned. Python's resource tracker then sees that
    nobody is left, and frees their shared memory.
    """
    parent = parent_process()
    if parent is None:
        return

    def watch() -> None:
        parent.join()
        # Nobody waits for what this process does, and cleaning up could wait for the parent.
        os._exit(1)

    threading.Thread(target=watch, name="parent-watch", daemon=True).start()


def start_resource_tracker() -> None:
    """Starts Python's resource tracker, to be called before the first helper process.

    It frees the shared memory and semaphores of processes that were killed, and would warn of each
    kind, which says nothing to users.
    """
    before = os.environ.get("PYTHONWARNINGS")
    os.environ["PYTHONWARNINGS"] = ",".join(
        filter(None, [before, "ignore:resource_tracker:UserWarning"])
    )
    try:
        resource_tracker.ensure_running()
    finally:
        if before is None:
            del os.environ["PYTHONWARNINGS"]
        else:
            os.environ["PYTHONWARNINGS"] = before


@contextlib.contextmanager
def signals_left_to_parent() -> Iterator[None]:
    """Blocks SIGINT, SIGTERM and SIGHUP in this thread; what it starts inherits that.

    A terminal sends Ctrl-C, and SIGHUP at its end, to all processes of a command; some launchers
    send SIGTERM alike. In a thread other than the main one this changes nothing else, as Python's
    handlers run in that.
    """
    blocked = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}
    previous = signal.pthread_sigmask(signal.SIG_BLOCK, blocked)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, previous)
