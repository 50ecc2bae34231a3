"""Work done in threads ahead of whoever needs its results."""

import collections
import itertools
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


def map_ahead(
    function: Callable[[T], R], items: Iterable[T], num_threads: int, ahead: int
) -> Iterator[R]:
    """Like `map` in threads, in order, with at most `ahead` results waiting.

    Closing the iterator ends the threads.
    """
    remaining = iter(items)
    pool = ThreadPoolExecutor(num_threads, thread_name_prefix="decode")
    try:
        waiting: collections.deque[Future[R]] = collections.deque()
        for item in itertools.islice(remaining, num_threads + ahead):
            waiting.append(pool.submit(function, item))
        while waiting:
            result = waiting.popleft().result()
            for item in itertools.islice(remaining, 1):
                waiting.append(pool.submit(function, item))
            yield result
    finally:
        pool.shutdown(cancel_futures=True)
