"""The pieces of an array make up the array, for every layout and dtype."""

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from internvideo_jax.convert.files import copying


def joined(array):
    """The pieces of an array put together; each may lie where the one before it lay."""
    copies = [piece.copy() for piece in copying.pieces(array)]
    assert all(piece.ndim == 1 for piece in copies)
    return np.concatenate([*copies, np.empty(0, array.dtype)]).reshape(array.shape)


@given(data=st.data(), piece_bytes=st.sampled_from([4, 40, 1000]))
def test_any_view_is_copied_exactly(data, piece_bytes):
    shape = data.draw(st.lists(st.integers(0, 6), max_size=5))
    array = np.arange(int(np.prod(shape)), dtype=np.int32).reshape(shape)
    view = array.transpose(data.draw(st.permutations(range(len(shape)))))
    view = view[tuple(slice(None, None, data.draw(st.sampled_from([1, 2, -1]))) for _ in shape)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(copying, "_PIECE_BYTES", piece_bytes)
        patch.setattr(copying, "_BLOCK_BYTES", 2 * piece_bytes)
        np.testing.assert_array_equal(joined(view), view)


@pytest.mark.parametrize(
    "dtype", [np.float32, np.float64, ml_dtypes.bfloat16, ml_dtypes.float8_e5m2, bool, complex]
)
def test_every_dtype_keeps_its_bits(dtype):
    array = np.arange(37 * 5 * 11).reshape(37, 5, 11).astype(dtype)
    copy = joined(array.transpose(2, 0, 1))
    assert copy.dtype == array.dtype
    np.testing.assert_array_equal(copy, array.transpose(2, 0, 1))


def test_pieces_are_small_and_nothing_is_copied_without_need(rng):
    array = rng.random((1700, 1000), np.float32)
    for view in (array, array.T):
        assert max(piece.nbytes for piece in copying.pieces(view)) <= 2**20
        np.testing.assert_array_equal(joined(view), view)
    assert all(np.shares_memory(piece, array) for piece in copying.pieces(array))
