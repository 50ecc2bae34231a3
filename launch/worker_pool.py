"""Work on untrusted files in processes that may hang or crash: each costs one file only."""

import contextlib
import dataclasses
import multiprocessing
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from multiprocessing.connection import Connection, wait
from typing import Any, TypeVar

Argument = TypeVar("Argument")
Result = TypeVar("Result")

# Seconds for a new process to import what it needs.
START_TIMEOUT = 300.0


@dataclasses.dataclass(frozen=True)
class Lost:
    """An argument without a result.

    Attributes:
      reason: why.
    """

    reason: str


def map_in_workers(
    function: Callable[[Argument], Result],
    arguments: Iterable[Argument],
    *,
    num_workers: int,
    timeout: float,
) -> Iterator[tuple[int, Result | Lost]]:
    """Calls a function in worker processes that are killed and replaced when they hang or crash.

    Args:
      function: can be pickled, as can arguments and results.
      arguments: of one call each, taken as workers become free.
      num_workers: processes at a time.
      timeout: seconds for one call.

    Yields:
      The number of an argument and its result, in the order of completion; `Lost` where the
      function raised something, took too long, or ended its process.

    Raises:
      RuntimeError: a worker could not be started.
    """
    todo = iter(enumerate(arguments))
    workers: list[_Worker] = []
    try:
        while True:
            while len(workers) < num_workers and (task := next(todo, None)) is not None:
                workers.append(_Worker(function, timeout, task))
            if not workers:
                return
            patience = max(min(worker.deadline for worker in workers) - time.monotonic(), 0)
            wait([worker.connection for worker in workers], patience)
            for worker in list(workers):
                number = worker.number
                result = worker.poll()
                if result is None:
                    continue
                task = None if worker.has_ended else next(todo, None)
                if task is None:
                    worker.stop()
                    workers.remove(worker)
                else:
                    worker.give(task)
                yield number, result.value
    finally:
        for worker in workers:
            worker.stop()


@dataclasses.dataclass(frozen=True)
class _Answer:
    value: Any


class _Worker:
    """A process and the call that it works on.

    Attributes:
      connection: readable when there is something to `poll`.
      number: of the call's argument.
      deadline: when it has to be finished, in `time.monotonic`.
      has_ended: whether the process is of no more use.
    """

    def __init__(
        self, function: Callable[[Any], Any], timeout: float, task: tuple[int, Any]
    ) -> None:
        # Forking would copy locks that threads of this process may hold.
        context = multiprocessing.get_context("spawn")
        self.connection: Connection
        self.connection, theirs = context.Pipe()
        self._process = context.Process(target=_work, args=(function, theirs), daemon=True)
        self._process.start()
        # With only one open end left, its death ends the connection.
        theirs.close()
        self._timeout = timeout
        self._first: tuple[int, Any] | None = task
        self.number = task[0]
        self.deadline = time.monotonic() + START_TIMEOUT
        self.has_ended = False

    def give(self, task: tuple[int, Any]) -> None:
        """Starts a call."""
        self.number, argument = task
        self.deadline = time.monotonic() + self._timeout
        # If it has died, `poll` finds out how.
        with contextlib.suppress(BrokenPipeError):
            self.connection.send(argument)

    def poll(self) -> _Answer | None:
        """The call's result, why there is none, or None if it goes on."""
        try:
            if self.connection.poll():
                message = self.connection.recv()
                if self._first is None:
                    return message
                task, self._first = self._first, None
                self.give(task)
                return None
        except (EOFError, ConnectionError):
            self._process.join()
            return self._end(f"the process that read it died ({_death(self._process.exitcode)})")
        if time.monotonic() < self.deadline:
            return None
        return self._end(f"no end after {self._timeout:g} s: its process was killed")

    def stop(self) -> None:
        """Ends the process."""
        self._process.kill()
        self._process.join()
        self.connection.close()

    def _end(self, reason: str) -> _Answer:
        if self._first is not None:
            raise RuntimeError(f"a worker process did not start: {reason}")
        self.has_ended = True
        return _Answer(Lost(reason))


def _work(function: Callable[[Any], Any], connection: Connection) -> None:
    """Life of a worker: says that it is ready, then answers calls until the other end closes."""
    # Ctrl-C goes to the whole group; the parent decides.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with contextlib.suppress(EOFError, ConnectionError):
        connection.send(None)
        while True:
            argument = connection.recv()
            try:
                answer = _Answer(function(argument))
            except Exception as error:
                answer = _Answer(Lost(f"{type(error).__name__}: {error}"))
            connection.send(answer)


def _death(exit_code: int | None) -> str:
    if exit_code is not None and exit_code < 0:
        return signal.Signals(-exit_code).name
    return f"exit code {exit_code}"
