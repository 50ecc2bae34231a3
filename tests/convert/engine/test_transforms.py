"""Every transform moves numbers to where the flax module expects them, and back to the bit."""

import ml_dtypes
import numpy as np
import pytest

from internvideo_jax.convert.engine import transforms

# Transform, shape of the parameter.
CASES = {
    "identity": (transforms.IDENTITY, (1, 5, 4)),
    "split_heads": (transforms.SPLIT_HEADS, (3, 2, 4)),
    "linear": (transforms.LINEAR, (6, 5)),
    "linear_into_heads": (transforms.LINEAR, (6, 3, 2, 4)),
    "linear_from_heads": (transforms.LINEAR_FROM_HEADS, (2, 4, 7)),
    "conv3d": (transforms.CONV3D, (2, 4, 4, 3, 5)),
    "join_qv_bias": (transforms.JOIN_QV_BIAS, (3, 2, 4)),
}


def _tensors(transform, shape, dtype=np.float32):
    rng = np.random.default_rng(0)
    return [rng.normal(size=s).astype(dtype) for s in transform.source_shapes(shape)]


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("case", CASES)
def test_a_round_trip_is_exact(case, dtype):
    transform, shape = CASES[case]
    tensors = _tensors(transform, shape, dtype)
    parameter = transform.forward(tensors, shape)
    assert parameter.shape == shape
    assert parameter.dtype == dtype
    for tensor, back in zip(tensors, transform.inverse(parameter), strict=True):
        assert back.dtype == dtype
        np.testing.assert_array_equal(back, tensor)


@pytest.mark.parametrize("case", CASES)
def test_the_inverse_is_the_transpose_so_that_gradients_go_the_same_way(case):
    # <forward(w), g> = <w, inverse(g)> for all w, g says that `inverse` maps gradients.
    transform, shape = CASES[case]
    tensors = _tensors(transform, shape)
    gradient = np.random.default_rng(1).normal(size=shape).astype(np.float32)
    left = np.sum(transform.forward(tensors, shape) * gradient, dtype=np.float64)
    right = sum(
        np.sum(a * b, dtype=np.float64)
        for a, b in zip(tensors, transform.inverse(gradient), strict=True)
    )
    assert left == pytest.approx(right, rel=1e-6)


def test_linear_multiplies_as_torch_does():
    (weight,) = _tensors(transforms.LINEAR, (6, 3, 2, 4))
    x = np.random.default_rng(1).normal(size=6).astype(np.float32)
    kernel = transforms.LINEAR.forward([weight], (6, 3, 2, 4))
    # torch: y = W x, its rows being q, k, v, each head by head.
    expected = (weight @ x).reshape(3, 2, 4)
    np.testing.assert_allclose(np.einsum("i,iqhd->qhd", x, kernel), expected, rtol=1e-5)


def test_linear_from_heads_reads_heads_in_order():
    (weight,) = _tensors(transforms.LINEAR_FROM_HEADS, (2, 4, 7))
    x = np.random.default_rng(1).normal(size=(2, 4)).astype(np.float32)
    kernel = transforms.LINEAR_FROM_HEADS.forward([weight], (2, 4, 7))
    expected = weight @ x.reshape(-1)
    np.testing.assert_allclose(np.einsum("hd,hdo->o", x, kernel), expected, rtol=1e-5, atol=1e-6)


def test_conv3d_places_every_element():
    shape = (2, 4, 5, 3, 6)
    (weight,) = _tensors(transforms.CONV3D, shape)
    assert weight.shape == (6, 3, 2, 4, 5)
    kernel = transforms.CONV3D.forward([weight], shape)
    for t, h, w, c, d in np.ndindex(shape):
        assert kernel[t, h, w, c, d] == weight[d, c, t, h, w]


def test_the_bias_of_keys_is_zero():
    q, v = _tensors(transforms.JOIN_QV_BIAS, (3, 2, 4))
    bias = transforms.JOIN_QV_BIAS.forward([q, v], (3, 2, 4))
    np.testing.assert_array_equal(bias[0].ravel(), q)
    np.testing.assert_array_equal(bias[1], np.zeros((2, 4)))
    np.testing.assert_array_equal(bias[2].ravel(), v)
