"""The tolerance rule of golden comparisons, in one place.

With scale(x) = max |reference x|:
  floating tensors   |a - b| <= 1e-5 * scale
  gradients          |a - b| <= 1e-5 * max(scale, 1e-3 * median scale of the file's gradients),
                     because some are nearly zero; those that are zero analytically are named
  half precision     one unit in the last place
  numbers in tables  1e-6, relative
  all else           exactly
All misfits of a call are listed together.
"""

from collections.abc import Collection, Mapping
from typing import Any

import ml_dtypes
import numpy as np

TOLERANCE = 1e-5
TABLE_TOLERANCE = 1e-6
_GRADIENT_FLOOR = 1e-3
_HALF = (np.dtype(np.float16), np.dtype(ml_dtypes.bfloat16))


def assert_tensor_close(
    name: str, actual: Any, expected: np.ndarray, *, tolerance: float = TOLERANCE
) -> None:
    """`assert_tensors_close` of one tensor."""
    assert_tensors_close({name: actual}, {name: expected}, tolerance=tolerance)


def assert_tensors_close(
    actual: Mapping[str, Any], expected: Mapping[str, np.ndarray], *, tolerance: float = TOLERANCE
) -> None:
    """Fails unless both hold the same names and all tensors agree.

    Args:
      actual: our arrays.
      expected: the reference's.
      tolerance: allowed error of float32 and float64 tensors, relative to each one's scale.
    """
    misfits = [
        f"{name}: nothing to compare with it" for name in sorted(set(actual) ^ set(expected))
    ]
    for name in sorted(set(actual) & set(expected)):
        misfits += _misfit(name, actual[name], expected[name], tolerance)
    _fail_on(misfits)


def assert_gradients_close(
    actual: Mapping[str, Any],
    expected: Mapping[str, np.ndarray],
    *,
    zero: Collection[str] = (),
    tolerance: float = TOLERANCE,
) -> None:
    """Fails unless all gradients agree; ours without a reference must be zero to the same floor.

    Args:
      actual: our gradients, at least of the parameters in `expected`.
      expected: the reference's, all of the file: their median scale is the floor's measure.
      zero: names of gradients that vanish analytically. Their rounding noise (1e-8 in the goldens)
        is far above the floor, which is 1e-8 of the median; ours and the reference's must each be
        below `tolerance` of the median instead.
      tolerance: as in `assert_tensors_close`.
    """
    median = float(np.median([_scale(g) for g in expected.values()])) if expected else 0.0
    misfits = [f"{name}: no such gradient of ours" for name in sorted(set(expected) - set(actual))]
    for name in sorted(actual):
        ours = np.asarray(actual[name])
        nothing = np.zeros_like(ours)
        reference = expected.get(name, nothing)
        if name in zero:
            misfits += _misfit(f"{name} (ours)", ours, nothing, tolerance, median)
            misfits += _misfit(f"{name} (reference)", reference, nothing, tolerance, median)
        else:
            misfits += _misfit(name, ours, reference, tolerance, _GRADIENT_FLOOR * median)
    _fail_on(misfits)


def assert_table_close(
    actual: Any, expected: Any, *, tolerance: float = TABLE_TOLERANCE, where: str = "table"
) -> None:
    """Fails unless nested dicts, lists, numbers and texts agree; numbers that are not both int
    within `tolerance`, relative to the reference."""
    _fail_on(_table_misfits(where, actual, expected, tolerance))


def _table_misfits(where: str, actual: Any, expected: Any, tolerance: float) -> list[str]:
    if isinstance(expected, Mapping) and isinstance(actual, Mapping):
        misfits = [f"{where}.{k}: only on one side" for k in sorted(set(actual) ^ set(expected))]
        for key in expected.keys() & actual.keys():
            misfits += _table_misfits(f"{where}.{key}", actual[key], expected[key], tolerance)
        return misfits
    if isinstance(expected, list | tuple) and isinstance(actual, list | tuple):
        if len(actual) != len(expected):
            return [f"{where}: length {len(actual)}, expected {len(expected)}"]
        pairs = enumerate(zip(actual, expected, strict=True))
        return [m for i, (a, e) in pairs for m in _table_misfits(f"{where}[{i}]", a, e, tolerance)]
    if _is_number(actual) and _is_number(expected) and float in (type(actual), type(expected)):
        close = abs(actual - expected) <= tolerance * abs(expected)
    else:
        close = type(actual) is type(expected) and actual == expected
    return [] if close else [f"{where}: {actual!r}, expected {expected!r}"]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _misfit(
    name: str, actual: Any, expected: np.ndarray, tolerance: float, floor: float = 0.0
) -> list[str]:
    """At most one line on how `actual` differs from `expected`."""
    actual, expected = np.asarray(actual), np.asarray(expected)
    if actual.shape != expected.shape:
        return [f"{name}: shape {actual.shape}, expected {expected.shape}"]
    if not _is_floating(expected):
        if _is_floating(actual) or not np.array_equal(actual, expected):
            different = int(np.sum(actual != expected))
            return [f"{name}: {different} of {expected.size} {expected.dtype} elements differ"]
        return []
    if not _is_floating(actual):
        return [f"{name}: {actual.dtype}, expected a floating type"]
    if expected.dtype in _HALF:
        steps = np.abs(_ordinal(actual.astype(expected.dtype)) - _ordinal(expected))
        worst = int(steps.max(initial=0))
        return [f"{name}: {worst} units in the last place apart, allowed 1"] if worst > 1 else []
    finite = np.isfinite(expected)
    if not np.array_equal(actual[~finite], expected[~finite], equal_nan=True):
        return [f"{name}: infinities or NaNs of the reference are not reproduced"]
    scale = max(_scale(expected), floor)
    error = np.abs(actual[finite].astype(np.float64) - expected[finite])
    worst = error.max(initial=0.0)
    if worst <= tolerance * scale:
        return []
    return [f"{name}: error {worst:.3g}, allowed {tolerance * scale:.3g} (scale {scale:.3g})"]


def _scale(x: np.ndarray) -> float:
    return float(np.abs(x[np.isfinite(x)]).max(initial=0.0))


def _is_floating(x: np.ndarray) -> bool:
    return bool(np.issubdtype(x.dtype, np.floating)) or x.dtype in _HALF


def _ordinal(x: np.ndarray) -> np.ndarray:
    """Position of half-precision values among all values of their type."""
    bits = x.view(np.int16).astype(np.int32)
    return np.where(bits < 0, -(bits & 0x7FFF), bits)


def _fail_on(misfits: list[str]) -> None:
    if misfits:
        raise AssertionError(f"{len(misfits)} misfits\n  " + "\n  ".join(misfits))
