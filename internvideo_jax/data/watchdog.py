"""Loading in the background, and starting it anew where it hangs or loses a process."""

import contextlib
import logging
import queue
import threading
from collections.abc import Callable, Iterator
from typing import Generic, Self, TypeVar

from internvideo_jax.processes import signals_left_to_parent

T = TypeVar("T")

MAX_RESTARTS = 3
# Items that are held ready.
AHEAD = 2
# How often a thread with nothing to do looks whether it is still wanted, in seconds.
_POLL = 0.1
# How long the end may take, in seconds: grain gives its processes ten to leave.
_PATIENCE = 30.0

_log = logging.getLogger(__name__)


class StalledLoader(TimeoutError):
    """Loading hangs, and starting it anew did not help."""


class LostWorker(ChildProcessError):
    """A process that loads has died; says how."""


class _Failure:
    """An exception on its way from one thread to another."""

    def __init__(self, error: BaseException):
        self.error = error


class BackgroundIterator(Generic[T]):
    """An iterator that runs ahead in a thread, and is replaced by a new one when it hangs.

    So it is when it raises `LostWorker`. A thread that hangs cannot be ended: it is left alone, and
    what it still delivers is dropped. Processes that are started in the thread get no SIGINT and no
    SIGTERM.

    Args:
      make: gives an iterator over the items from a number on; it must give equal items every time.
        If the iterator has `close`, that is called when it is no longer needed.
      timeout: seconds without an item after which the iterator counts as hanging.
      total: how many items there are, where that is known.

    Raises:
      StalledLoader: from `next`, after `MAX_RESTARTS` at one item.
      LostWorker: from `next`, after as many.
    """

    def __init__(
        self, make: Callable[[int], Iterator[T]], *, timeout: float, total: int | None = None
    ):
        self.total = total
        self._run: _Run[T] | None = None
        self._make = make
        self._timeout = timeout
        self._delivered = 0
        self._restarts = 0
        self._is_closed = False

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> T:
        if self._is_closed:
            raise StopIteration
        if self._run is None:
            self._run = _Run(self._make, self._delivered)
        try:
            item = self._run.items.get(timeout=self._timeout)
        except queue.Empty:
            self._run.abandon()
            self._restart(
                f"no batch for {self._timeout:g} s",
                StalledLoader(
                    f"expected batch {self._delivered} of this run within {self._timeout:g} s,"
                    f" found nothing in {MAX_RESTARTS + 1} attempts; look at the disk, or raise"
                    " stall_timeout"
                ),
            )
            return next(self)
        if isinstance(item, _Failure) and isinstance(item.error, LostWorker):
            # Memory may be what they lacked: no new processes before the other ones have left.
            self._run.stop()
            self._restart(
                str(item.error),
                LostWorker(
                    f"expected batch {self._delivered} of this run, found that the processes which"
                    f" load it died in {MAX_RESTARTS + 1} attempts ({item.error}); if memory is"
                    " short, set fewer workers, or 0 for threads"
                ),
            )
            return next(self)
        if isinstance(item, _Failure):
            self.close()
            raise item.error
        self._delivered += 1
        self._restarts = 0
        return item

    def close(self) -> None:
        """Ends loading."""
        self._is_closed = True
        if self._run is not None:
            self._run.stop()
            self._run = None

    def __del__(self) -> None:
        if self._run is not None:
            self._run.release()

    def _restart(self, reason: str, error: StalledLoader | LostWorker) -> None:
        """Forgets the run, so that the next call starts another; raises if there were too many."""
        self._run = None
        if self._restarts == MAX_RESTARTS:
            self._is_closed = True
            raise error
        self._restarts += 1
        _log.warning(
            "%s: loading starts anew at batch %d of this run (%d of %d times)",
            reason,
            self._delivered,
            self._restarts,
            MAX_RESTARTS,
        )


class _Run(Generic[T]):
    """One iterator with its thread and what it has ready."""

    def __init__(self, make: Callable[[int], Iterator[T]], start: int):
        self.items: queue.Queue[T | _Failure] = queue.Queue(AHEAD)
        self._is_stopped = threading.Event()
        self._iterator: Iterator[T] | None = None
        self._thread = threading.Thread(
            target=self._fill, args=(make, start), name="data-loader", daemon=True
        )
        self._thread.start()

    def release(self) -> None:
        """Lets the thread end when it can."""
        self._is_stopped.set()

    def stop(self) -> None:
        """Ends the thread; waits for it unless it hangs."""
        self.release()
        self._thread.join(_PATIENCE)
        if self._thread.is_alive():
            self.abandon()

    def abandon(self) -> None:
        """Lets the thread end when it can, and takes its helpers (processes) away from it."""
        self.release()

        def close() -> None:
            # What hangs may be in any state.
            with contextlib.suppress(Exception):
                self._close()

        # Closing may hang as well.
        threading.Thread(target=close, name="data-loader-close", daemon=True).start()

    def _fill(self, make: Callable[[int], Iterator[T]], start: int) -> None:
        try:
            with signals_left_to_parent():
                self._iterator = make(start)
                for item in self._iterator:
                    if not self._put(item):
                        return
            self._put(_Failure(StopIteration()))
        except BaseException as error:
            self._put(_Failure(error))
        finally:
            self._close()

    def _put(self, item: T | _Failure) -> bool:
        while not self._is_stopped.is_set():
            with contextlib.suppress(queue.Full):
                self.items.put(item, timeout=_POLL)
                return True
        return False

    def _close(self) -> None:
        # grain's iterators complain when they are left over at the end of the program.
        iterator, self._iterator = self._iterator, None
        close = getattr(iterator, "close", None)
        if close is not None:
            close()
