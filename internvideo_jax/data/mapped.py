"""Arrays in files, mapped into memory where they are used."""

import threading
from collections.abc import Callable

import numpy as np


class MappedArray:
    """An array that each process maps on first use; pickled, it is what says how.

    Args:
      load: maps the file; a function that can be pickled.
    """

    def __init__(self, load: Callable[[], np.ndarray]):
        self._load = load
        self._lock = threading.Lock()
        self._array: np.ndarray | None = None

    def __reduce__(self) -> tuple[type["MappedArray"], tuple[Callable[[], np.ndarray]]]:
        return MappedArray, (self._load,)

    def __call__(self) -> np.ndarray:
        """The array."""
        with self._lock:
            if self._array is None:
                # A plain view: subclasses of arrays are slow to index.
                self._array = np.asarray(self._load())
            return self._array
