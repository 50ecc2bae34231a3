"""NaN and infinities among weights, found while these are on their way."""

from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Self

import ml_dtypes
import numpy as np

# All bits of the exponent: only NaN and infinities have them.
_EXPONENTS = {
    np.dtype(np.float32): 0x7F800000,
    np.dtype(np.float16): 0x7C00,
    np.dtype(ml_dtypes.bfloat16): 0x7F80,
}
# Numbers that are looked at together: they stay in a core's cache.
_PIECE = 1 << 17
_MAX_WAITING = 2


def is_finite(array: np.ndarray) -> bool:
    """Whether an array of float32, float16, bfloat16 or integers holds no NaN and no infinity."""
    exponent = _EXPONENTS.get(array.dtype)
    if exponent is None:
        return True
    # In the order of memory, whatever that of the axes is.
    bits = array.ravel(order="K").view(f"u{array.itemsize}")
    mask = bits.dtype.type(exponent)
    pieces = (bits[start : start + _PIECE] for start in range(0, bits.size, _PIECE))
    return all((piece & mask).max() != mask for piece in pieces)


def describe(array: np.ndarray) -> str:
    """How much of an array is not finite."""
    wide = array.astype(np.float32)
    found = {"NaN": np.isnan(wide).sum(), "infinite": np.isinf(wide).sum()}
    counts = ", ".join(f"{count:,} {what}" for what, count in found.items() if count)
    return f"{counts} of {array.size:,}"


class FiniteCheck:
    """Looks through arrays in a thread of its own, beside whoever works on them.

    with FiniteCheck() as check:
        check.add(names, array)
        ...
        found = check.finish()
    """

    def __init__(self) -> None:
        self._found: dict[str, str] = {}
        self._waiting: deque[Future[None]] = deque()

    def __enter__(self) -> Self:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="finite")
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.shutdown(cancel_futures=True)

    def add(self, names: Sequence[str], array: np.ndarray) -> None:
        """Begins to look through an array, which must not change.

        Args:
          names: of the tensors that it is made of.
          array: its numbers.
        """
        while len(self._waiting) >= _MAX_WAITING:
            self._waiting.popleft().result()
        self._waiting.append(self._thread.submit(self._look, names, array))

    def finish(self) -> dict[str, str]:
        """What was found in which tensors, when all arrays are looked through."""
        while self._waiting:
            self._waiting.popleft().result()
        return self._found

    def _look(self, names: Sequence[str], array: np.ndarray) -> None:
        if not is_finite(array):
            self._found[" with ".join(names)] = describe(array)
