"""Every transform moves numbers to where the flax module expects them, and back to the bit."""

import ml_dtypes
import numpy as np
import pytest

from internvideo_jax.convert.engine import transforms

# Transform, shapes of the parameters.
CASES = {
    "identity": (transforms.IDENTITY, (1, 5, 4)),
    "reshape": (transforms.RESHAPE, (3, 2, 4)),
    "linear": (transforms.LINEAR, (6, 5)),
    "linear_into_heads": (transforms.LINEAR, (6, 3, 2, 4)),
    "linear_from_heads": (transforms.LINEAR_FROM_HEADS, (2, 4, 7)),
    "conv2d": (transforms.CONV2D, (4, 4, 1, 5)),
    "conv2d_to_3d": (transforms.CONV2D_TO_3D, (1, 4, 4, 3, 5)),
    "conv3d": (transforms.CONV3D, (2, 4, 4, 3, 5)),
    "join_qv_bias": (transforms.JOIN_QV_BIAS, (3, 2, 4)),
    "weight_norm": (transforms.WEIGHT_NORM, (4, 3, 6), (4,)),
}


def _tensors(transform, *shapes, dtype=np.float32):
    rng = np.random.default_rng(0)
    return [rng.normal(size=s).astype(dtype) for s in transform.source_shapes(shapes)]


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("case", CASES)
def test_a_round_trip_is_exact(case, dtype):
    transform, *shapes = CASES[case]
    tensors = _tensors(transform, *shapes, dtype=dtype)
    parameters = transform.forward(tensors, shapes)
    assert [p.shape for p in parameters] == shapes
    assert {p.dtype for p in parameters} == {np.dtype(dtype)}
    for tensor, back in zip(tensors, transform.inverse(parameters), strict=True):
        assert back.dtype == dtype
        np.testing.assert_array_equal(back, tensor)


@pytest.mark.parametrize("case", CASES)
def test_the_inverse_is_the_transpose_so_that_gradients_go_the_same_way(case):
    # <forward(w), g> = <w, inverse(g)> for all w, g says that `inverse` maps gradients.
    transform, *shapes = CASES[case]
    tensors = _tensors(transform, *shapes)
    rng = np.random.default_rng(1)
    gradients = [rng.normal(size=shape).astype(np.float32) for shape in shapes]

    def product(xs, ys):
        return sum(np.sum(x * y, dtype=np.float64) for x, y in zip(xs, ys, strict=True))

    left = product(transform.forward(tensors, shapes), gradients)
    right = product(tensors, transform.inverse(gradients))
    assert left == pytest.approx(right, rel=1e-6)


def test_the_bias_of_keys_is_zero():
    q, v = _tensors(transforms.JOIN_QV_BIAS, (3, 2, 4))
    (bias,) = transforms.JOIN_QV_BIAS.forward([q, v], [(3, 2, 4)])
    np.testing.assert_array_equal(bias[0].ravel(), q)
    np.testing.assert_array_equal(bias[1], np.zeros((2, 4)))
    np.testing.assert_array_equal(bias[2].ravel(), v)


def test_a_plain_weight_is_its_own_direction_and_its_taps_lengths():
    shapes = [(4, 3, 6), (4,)]
    (weight,) = _tensors(transforms.TO_WEIGHT_NORM, *shapes)
    direction, length = transforms.TO_WEIGHT_NORM.forward([weight], shapes)
    np.testing.assert_array_equal(direction, weight.T)
    np.testing.assert_allclose(length, np.linalg.norm(weight.reshape(18, 4), axis=0), rtol=1e-6)


def test_lora_is_added_to_its_weight():
    fold = transforms.fold_lora(transforms.LINEAR, alpha=8)
    assert fold.source_shapes([(6, 2, 4)]) == ((8, 6), (None, 6), (8, None))
    rng = np.random.default_rng(0)
    weight, a, b = (rng.normal(size=s).astype(np.float16) for s in ((8, 6), (2, 6), (8, 2)))
    (kernel,) = fold.forward([weight, a.astype(np.float32), b], [(6, 2, 4)])
    assert kernel.dtype == np.float16
    expected = weight + 4 * b.astype(np.float32) @ a
    np.testing.assert_allclose(kernel.reshape(6, 8).T, expected, rtol=1e-3)


def test_int8_values_and_their_scales():
    int8 = transforms.quantize(transforms.LINEAR_FROM_HEADS, (-3, -2))
    shapes = [(2, 4, 7), (7,)]
    (weight,) = _tensors(int8, *shapes)
    weight[3] = 0
    values, scale = int8.forward([weight], shapes)
    assert (values.dtype, values.shape, scale.dtype) == (np.int8, (2, 4, 7), np.float32)
    assert np.abs(values).max((0, 1)).tolist() == [127, 127, 127, 0, 127, 127, 127]
    (back,) = int8.inverse([values, scale])
    np.testing.assert_allclose(back, weight, atol=np.abs(weight).max() / 254 + 1e-7)
