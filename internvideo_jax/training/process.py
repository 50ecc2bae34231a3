"""A run among other processes: one per workdir, and stopped politely by signals."""

import contextlib
import fcntl
import gc
import os
import select
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType

LOCK = "lock"

# SIGHUP comes when the terminal or the connection is closed.
_SIGNALS = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)
# Seconds after which a program ends although its main thread does not answer.
_PATIENCE = 5.0
_POLL = 0.5
_RETRY = 0.05


@contextlib.contextmanager
def locked(workdir: Path) -> Iterator[None]:
    """Keeps other runs out of a folder; ends with the process, however that ends.

    Raises:
      BlockingIOError: another process has it.
      OSError: it cannot be written.
    """
    try:
        lock = (workdir / LOCK).open("a+", encoding="utf-8")
    except OSError as error:
        raise _cannot_write(workdir, error) from error
    with lock as file:
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


def _cannot_write(workdir: Path, error: OSError) -> OSError:
    return OSError(
        f"{workdir}: expected a folder of the run that can be made and written, found"
        f" {error.strerror!r}; name another workdir"
    )


@contextlib.contextmanager
def claimed(workdir: Path, outputs: Sequence[str]) -> Iterator[Callable[[], None]]:
    """Makes a folder, keeps other runs out of it, and removes what no run has begun in.

    Yields a function to call once the outputs are worth something. Unless it was called, those that
    were not there before are removed at the end, made folders included.

    Raises:
      BlockingIOError: another process has it.
      OSError: it cannot be made, or not be written.
    """
    made = [folder for folder in (workdir, *workdir.parents) if not folder.exists()]
    try:
        workdir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _cannot_write(workdir, error) from error
    is_kept = any((workdir / name).exists() for name in outputs)

    def keep() -> None:
        nonlocal is_kept
        is_kept = True

    with locked(workdir):
        try:
            yield keep
        finally:
            if not is_kept:
                for path in (workdir / name for name in (*outputs, LOCK)):
                    if path.is_dir():
                        shutil.rmtree(path, ignore_errors=True)
                    else:
                        path.unlink(missing_ok=True)
                for folder in made:
                    # Somebody else may have put something there.
                    with contextlib.suppress(OSError):
                        folder.rmdir()


class Stopped(KeyboardInterrupt):
    """The run was asked to stop, at a place where it can."""


class Notice:
    """Whether a run was asked to stop.

    Attributes:
      signal: how, SIGTERM, SIGHUP or SIGINT (Ctrl-C); None as long as it was not.
      is_unsaved: whether the run has steps that no checkpoint holds; the loop says so.
    """

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        self.is_unsaved = False
        self._interrupts = False

    @contextlib.contextmanager
    def interrupting(self) -> Iterator[None]:
        """A block that a notice ends at once, also one that came earlier.

        Raises:
          Stopped: the run was asked to stop.
        """
        try:
            self._interrupts = True
            if self.signal is not None:
                raise Stopped
            yield
        finally:
            self._interrupts = False

    def check(self, step: int) -> None:
        """Ends the run between two steps. With several processes all must call it.

        Raises:
          Stopped: the run was asked to stop; on all processes after the same step.
        """
        # Needs JAX, which takes seconds to import.
        import jax
        from jax.experimental import multihost_utils

        if jax.process_count() > 1 and multihost_utils.reached_preemption_sync_point(step):
            # JAX's own handler takes the signal.
            self.signal = signal.SIGTERM
        if self.signal is not None:
            raise Stopped

    @property
    def name(self) -> str:
        """The signal as users know it."""
        assert self.signal is not None
        return "Ctrl-C" if self.signal == signal.SIGINT else self.signal.name

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.signal is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal = self.signal or signal.Signals(number)
        # Under way already: what it unwinds must not be interrupted.
        if not self._interrupts or isinstance(sys.exception(), Stopped):
            return
        # Python drops what is raised in callbacks of the garbage collector and of weak references.
        again = threading.Timer(_RETRY, self._send_again)
        again.daemon = True
        again.start()
        if not _is_collecting(frame):
            raise Stopped

    def _send_again(self) -> None:
        if self._interrupts:
            os.kill(os.getpid(), signal.SIGTERM)


@contextlib.contextmanager
def preemption() -> Iterator[Notice]:
    """Notes signals instead of dying of them; a second SIGINT counts at once.

    SIGHUP stays ignored where it is already, as under `nohup`. Of several processes JAX's own
    handler takes SIGTERM, and the others end the process as ever.
    """
    notice = Notice()
    if not _handles_signals():
        yield notice
        return
    is_nohup = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    numbers = [number for number in _SIGNALS if number != signal.SIGHUP or not is_nohup]
    previous = {number: signal.signal(number, notice._note) for number in numbers}
    try:
        yield notice
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def enforced(notice: Notice, exit_codes: Mapping[int, int]) -> Iterator[None]:
    """Ends this process where its main thread cannot: native code may keep that for minutes.

    So it is some seconds after a first signal if no step is lost, as while compiling the first, and
    at once after a second SIGINT. Nothing is cleaned up then: the next start does that.

    Args:
      notice: of the run.
      exit_codes: of the process, by the first signal.
    """
    if not _handles_signals():
        yield
        return
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    # The interpreter writes the numbers of signals there as they come, whatever its threads do.
    previous = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    thread = threading.Thread(
        target=_enforce, args=(reader, notice, exit_codes), name="signals", daemon=True
    )
    thread.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(previous)
        os.close(writer)
        thread.join()


def _enforce(reader: int, notice: Notice, exit_codes: Mapping[int, int]) -> None:
    came: list[int] = []
    idle_since = 0.0
    with open(reader, "rb", buffering=0) as pipe:
        while True:
            if select.select([pipe], [], [], _POLL if came else None)[0]:
                numbers = pipe.read(1)
                if not numbers:
                    return
                if numbers[0] in _SIGNALS:
                    came.append(numbers[0])
            if notice.is_unsaved or not idle_since:
                idle_since = time.monotonic()
            is_late = bool(came) and time.monotonic() - idle_since > _PATIENCE
            if came.count(signal.SIGINT) > 1 or is_late:
                name = signal.Signals(came[0]).name
                print(f"ended by {name} without waiting longer", file=sys.stderr, flush=True)
                os._exit(exit_codes[came[0]])


def _is_collecting(frame: FrameType | None) -> bool:
    """Whether a frame belongs to a callback of the garbage collector; JAX has one."""
    codes = {getattr(callback, "__code__", None) for callback in gc.callbacks}
    while frame is not None:
        if frame.f_code in codes:
            return True
        frame = frame.f_back
    return False


def _handles_signals() -> bool:
    """Whether signals are ours: Python allows handlers in the main thread only."""
    if threading.current_thread() is not threading.main_thread():
        return False
    if "jax" not in sys.modules:
        return True
    import jax

    return jax.process_count() == 1
