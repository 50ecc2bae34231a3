import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from internvideo_jax.nn.position_embedding import (
    resize_matrix,
    resize_position_table,
    sincos_1d,
    sincos_2d,
    sincos_3d,
)


def test_sincos_3d_is_time_then_space_after_a_zero_row() -> None:
    table = sincos_3d(16, (2, 3), 4)
    assert table.shape == (25, 16)
    assert not table[0].any()
    clip = table[1:].reshape(4, 6, 16)
    np.testing.assert_array_equal(clip[2, :, 4:], sincos_2d(12, (2, 3)))
    np.testing.assert_array_equal(clip[:, 5, :4], sincos_1d(4, np.arange(4)))
    np.testing.assert_array_equal(sincos_3d(16, (2, 3), 4, cls_token=False), table[1:])


@pytest.mark.parametrize(
    ("make", "divisor"),
    [
        (lambda: sincos_1d(5, np.arange(1)), 2),
        (lambda: sincos_2d(6, (2, 2)), 4),
        (lambda: sincos_3d(24, (2, 2), 2), 16),
    ],
)
def test_widths_that_do_not_divide_are_refused(make, divisor) -> None:
    with pytest.raises(ValueError, match=f"divisible by {divisor}, found"):
        make()


def test_linear_matrix_is_the_half_pixel_one() -> None:
    np.testing.assert_allclose(
        resize_matrix(2, 4, "linear"), [[1, 0], [0.75, 0.25], [0.25, 0.75], [0, 1]]
    )
    # No antialiasing: shrinking by 4 looks at the two middle samples alone.
    np.testing.assert_allclose(resize_matrix(4, 1, "linear"), [[0, 0.5, 0.5, 0]])


def test_bicubic_matrix_has_the_kernel_of_pytorch() -> None:
    # Half-way between samples, a = -0.75 gives (a/8, 1/2 - a/8) either side.
    np.testing.assert_allclose(
        resize_matrix(8, 4, "bicubic")[1], [0, -0.09375, 0.59375, 0.59375, -0.09375, 0, 0, 0]
    )


@given(st.integers(1, 40), st.integers(1, 40), st.sampled_from(["linear", "bicubic"]))
@settings(max_examples=60)
def test_matrices_keep_constants_and_the_identity(old, new, method) -> None:
    matrix = resize_matrix(old, new, method)
    assert matrix.shape == (new, old)
    np.testing.assert_allclose(matrix.sum(axis=1), 1, atol=1e-6)
    np.testing.assert_allclose(resize_matrix(old, old, method), np.eye(old), atol=1e-6)
    # Mirrored samples give mirrored results.
    np.testing.assert_allclose(matrix, matrix[::-1, ::-1], atol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [((0, 4, "linear"), "at least 1, found 0 -> 4"), ((4, 4, "nearest"), "found 'nearest'")],
)
def test_resize_matrix_errors(arguments, message) -> None:
    with pytest.raises(ValueError, match=message):
        resize_matrix(*arguments)


def table(rows: int, dim: int = 4, dtype: str = "float32") -> np.ndarray:
    return np.random.default_rng(0).normal(size=(1, rows, dim)).astype(dtype)


def test_resizing_keeps_the_extra_rows_and_the_kind_of_array() -> None:
    x = table(2 + 2 * 3 * 3)
    resized = resize_position_table(x, (2, 3, 3), (4, 5, 3), num_extra=2)
    assert isinstance(resized, np.ndarray)
    assert resized.shape == (1, 2 + 4 * 5 * 3, 4)
    np.testing.assert_array_equal(resized[:, :2], x[:, :2])
    ours = jax.jit(lambda x: resize_position_table(x, (2, 3, 3), (4, 5, 3), num_extra=2))(x)
    np.testing.assert_allclose(ours, resized, atol=1e-6)


def test_half_precision_tables_are_resized_in_float32_and_keep_their_dtype() -> None:
    x = table(4, dtype="float16")
    grids = (4, 1, 1), (7, 1, 1)
    resized = resize_position_table(x, *grids, num_extra=0)
    assert resized.dtype == np.float16
    exact = resize_position_table(x.astype(np.float32), *grids, num_extra=0)
    np.testing.assert_array_equal(resized, exact.astype(np.float16))


def test_a_table_of_another_grid_is_refused() -> None:
    with pytest.raises(ValueError, match=r"1 \+ 2\*3\*3 = 19, D\], found shape \(1, 18, 4\)"):
        resize_position_table(table(18), (2, 3, 3), (4, 3, 3))
