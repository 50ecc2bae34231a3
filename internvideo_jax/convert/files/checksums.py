"""sha256 sums of files, computed in the background while something else is done with them."""

import hashlib
import threading
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Self

# Long enough that waiting for the interpreter's lock between two pieces does not count.
_PIECE_BYTES = 8 << 20


class Checksums:
    """Hashes files one after another in a thread of its own.

    with Checksums() as checksums:
        checksums.start(path)
        ...
        sums = checksums.wait([path])

    Leaving the block stops what is still under way.
    """

    def __init__(self) -> None:
        self._stop = threading.Event()
        self._sums: dict[Path, Future[str]] = {}

    def __enter__(self) -> Self:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="sha256")
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.shutdown(cancel_futures=True)

    def start(self, path: Path) -> None:
        """Begins to hash a file, unless it has begun already."""
        path = path.resolve()
        if path not in self._sums:
            self._sums[path] = self._thread.submit(self._hash, path)

    def wait(self, paths: Iterable[Path]) -> dict[Path, str]:
        """The sums of files, in hexadecimal.

        Raises:
          OSError: a file cannot be read.
        """
        paths = list(paths)
        for path in paths:
            self.start(path)
        return {path: self._sums[path.resolve()].result() for path in paths}

    def _hash(self, path: Path) -> str:
        digest = hashlib.sha256()
        buffer = memoryview(bytearray(_PIECE_BYTES))
        with open(path, "rb", buffering=0) as file:
            while not self._stop.is_set() and (size := file.readinto(buffer)):
                digest.update(buffer[:size])
        return digest.hexdigest()
