import ml_dtypes
import numpy as np
import pytest

from internvideo_jax.convert.engine import finite


@pytest.mark.parametrize("dtype", ["float32", "float16", ml_dtypes.bfloat16, "int8"])
def test_the_largest_numbers_are_finite(dtype, rng):
    array = rng.normal(size=(700, 300)).astype(dtype)
    for value, is_finite in ((np.nan, False), (-np.inf, False), (None, True)):
        changed = array.copy()
        limits = ml_dtypes.iinfo(dtype) if dtype == "int8" else ml_dtypes.finfo(dtype)
        changed[0] = limits.max
        changed[1] = limits.min
        if value is not None and dtype != "int8":
            changed[-1, -1] = value
        for view in (changed, changed.T, changed[:, ::2] if is_finite else changed[:, ::-1]):
            assert finite.is_finite(view) == (is_finite or dtype == "int8")


@pytest.mark.parametrize("dtype", ["float32", "float16", ml_dtypes.bfloat16])
@pytest.mark.parametrize("sign", [1, -1])
def test_each_kind_is_counted_alone(dtype, sign):
    array = np.ones((4, 5), dtype)
    assert +finite.count_others(array) == {}
    array[1] = sign * np.inf
    assert +finite.count_others(array) == {"infinite": 5}
    array[1:3] = np.copysign(np.nan, sign)
    assert +finite.count_others(array) == {"NaN": 10}
