"""NaN and infinities among weights."""

from collections import Counter

import ml_dtypes
import numpy as np

# Bits of infinity. Only NaN have larger ones, of numbers of either sign.
_INFINITY = {
    np.dtype(np.float32): 0x7F800000,
    np.dtype(np.float16): 0x7C00,
    np.dtype(ml_dtypes.bfloat16): 0x7F80,
}


def is_finite(array: np.ndarray) -> bool:
    """Whether an array of float32, float16, bfloat16 or integers holds no NaN and no infinity."""
    infinity = _INFINITY.get(array.dtype)
    if infinity is None:
        return True
    bits = 8 * array.itemsize
    # The largest signed number is a positive float's, the largest unsigned one a negative's.
    positive = array.view(f"i{array.itemsize}").max(initial=0)
    negative = array.view(f"u{array.itemsize}").max(initial=0)
    return bool(positive < infinity and negative < infinity + (1 << (bits - 1)))


def count_others(array: np.ndarray) -> Counter[str]:
    """How many of an array's numbers are "NaN" and "infinite"."""
    wide = array.astype(np.float32)
    return Counter({"NaN": int(np.isnan(wide).sum()), "infinite": int(np.isinf(wide).sum())})
