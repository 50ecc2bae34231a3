"""A run among other processes: one per workdir, and stopped politely by SIGTERM."""

import contextlib
import fcntl
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

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


class Preemption:
    """Notes SIGTERM instead of dying of it; a context manager."""

    def __init__(self) -> None:
        self._noted = False
        self._previous: Any = None

    def reached(self, step: int) -> bool:
        """Whether to stop after this step: the same answer on all processes, which all must ask.

        With several processes JAX's own handler takes the signal and agrees on a step.
        """
        if jax.process_count() > 1:
            return multihost_utils.reached_preemption_sync_point(step)
        return self._noted

    def __enter__(self) -> "Preemption":
        # Python allows handlers in the main thread only.
        if jax.process_count() == 1 and threading.current_thread() is threading.main_thread():
            self._previous = signal.signal(signal.SIGTERM, self._note)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._previous is not None:
            signal.signal(signal.SIGTERM, self._previous)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._noted = True
