"""Work on untrusted files in processes that may hang or crash: each costs one file only."""

import dataclasses
import multiprocessing
import signal
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Future, wait
from itertools import islice
from typing import Any, TypeVar

from pebble import ProcessExpired, ProcessPool

from internvideo_jax.processes import end_with_parent

Argument = TypeVar("Argument")
Result = TypeVar("Result")


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
) -> Iterator[tuple[Argument, Result | Lost]]:
    """Calls a function in worker processes that are killed and replaced when they hang or crash.

    Args:
      function: can be pickled, as can arguments and results.
      arguments: of one call each, taken as workers become free.
      num_workers: processes at a time.
      timeout: seconds for one call.

    Yields:
      An argument and its result, in the order of completion; `Lost` where the function raised
      something, took too long, or ended its process.

    Raises:
      RuntimeError: the workers do not start.
    """
    todo = iter(arguments)
    # Forking would copy locks that threads of this process may hold.
    pool = ProcessPool(
        num_workers,
        initializer=_prepare,
        # To unpickle it imports what it needs, before the time of the first call begins.
        initargs=(function,),
        context=multiprocessing.get_context("spawn"),
    )
    calls: dict[Future[Any], Argument] = {}
    try:
        while True:
            # One more for each worker than it works on, so that none waits.
            for argument in islice(todo, 2 * num_workers - len(calls)):
                calls[pool.schedule(function, args=[argument], timeout=timeout)] = argument
            if not calls:
                return
            for call in wait(calls, return_when=FIRST_COMPLETED).done:
                yield calls.pop(call), _result(call, timeout)
    finally:
        pool.stop()
        pool.join()


def _prepare(_: object) -> None:
    # Ctrl-C goes to the whole group; the parent decides.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    end_with_parent()


def _result(call: Future[Any], timeout: float) -> Any:
    try:
        return call.result()
    except ProcessExpired as error:
        return Lost(f"the process that read it died ({_death(error.exitcode)})")
    except BrokenExecutor as error:
        raise RuntimeError(f"the worker processes do not start: {error}") from error
    except TimeoutError:
        return Lost(f"no end after {timeout:g} s: its process was killed")
    except Exception as error:
        return Lost(f"{type(error).__name__}: {error}")


def _death(exit_code: int | None) -> str:
    if exit_code is not None and exit_code < 0:
        return signal.Signals(-exit_code).name
    return f"exit code {exit_code}"
