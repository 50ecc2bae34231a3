"""A run among other processes: one per workdir, and stopped politely by SIGTERM."""

import contextlib
import fcntl
import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
from jax.experimental import multihost_utils

LOCK = "lock"


@contextlib.contextmanager
def locked(workdir: Path) -> Iterator[None]:
    """Keeps other runs out of a folder; ends with the process, however that ends.

    Raises:
      BlockingIOError: another process has it.
    """
    with (workdir / LOCK).open("a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            owner = file.read().strip() or "unknown"
            raise BlockingIOError(
                f"{workdir} is in use by another run, process {owner}; wait for it, end it, or name"
                " another workdir"
            ) from None
        file.truncate(0)
        file.write(f"{os.getpid()}\n")
        file.flush()
        yield


@contextlib.contextmanager
def preemption() -> Iterator[Callable[[int], bool]]:
    """Notes SIGTERM instead of dying of it.

    Yields a function that says whether to stop after a step: the same answer on all processes,
    which all must ask. With several, JAX's own handler takes the signal and agrees on a step.
    """
    noted = threading.Event()
    if jax.process_count() > 1:
        yield multihost_utils.reached_preemption_sync_point
    # Python allows handlers in the main thread only.
    elif threading.current_thread() is not threading.main_thread():
        yield lambda step: False
    else:
        previous = signal.signal(signal.SIGTERM, lambda number, frame: noted.set())
        try:
            yield lambda step: noted.is_set()
        finally:
            signal.signal(signal.SIGTERM, previous)
