"""Contiguous copies equal NumPy's for every layout and dtype."""

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from internvideo_jax.convert.files.copying import contiguous


@given(data=st.data())
def test_any_view_is_copied_exactly(data):
    shape = data.draw(st.lists(st.integers(1, 6), max_size=5))
    array = np.arange(int(np.prod(shape)), dtype=np.int32).reshape(shape)
    view = array.transpose(data.draw(st.permutations(range(len(shape)))))
    view = view[tuple(slice(None, None, data.draw(st.sampled_from([1, 2, -1]))) for _ in shape)]
    copy = contiguous(view)
    assert copy.flags.c_contiguous
    np.testing.assert_array_equal(copy, view)


@pytest.mark.parametrize(
    "dtype", [np.float32, np.float64, ml_dtypes.bfloat16, ml_dtypes.float8_e5m2, bool, complex]
)
def test_every_dtype_keeps_its_bits(dtype):
    array = np.arange(37 * 5 * 11).reshape(37, 5, 11).astype(dtype)
    copy = contiguous(array.transpose(2, 0, 1))
    assert copy.dtype == array.dtype
    np.testing.assert_array_equal(copy, array.transpose(2, 0, 1))


def test_nothing_is_copied_without_need():
    array = np.zeros((3, 4))
    assert contiguous(array) is array
