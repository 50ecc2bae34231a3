import jax.numpy as jnp
import numpy as np
import pytest

from internvideo_jax.nn.rotary import rotary_tables, rotate

X = np.random.default_rng(0).normal(size=(1, 6, 2, 8)).astype(np.float32)


def turned(positions):
    return rotate(jnp.asarray(X), rotary_tables(jnp.asarray([positions]), 8, 100.0))


def test_position_zero_stays_and_lengths_are_kept():
    np.testing.assert_array_equal(turned([0] * 6), X)
    lengths = [np.linalg.norm(a, axis=-1) for a in (turned(range(6)), X)]
    np.testing.assert_allclose(*lengths, rtol=1e-6)


def test_channel_i_turns_with_its_partner_half_the_head_away():
    x = np.zeros((1, 1, 1, 8), np.float32)
    x[..., 1] = 1
    out = np.asarray(rotate(jnp.asarray(x), rotary_tables(jnp.asarray([[3]]), 8, 100.0)))[0, 0, 0]
    angle = 3 * 100.0 ** (-2 / 8)
    np.testing.assert_allclose(out[[1, 5]], [np.cos(angle), np.sin(angle)], rtol=1e-6)
    assert not out[[0, 2, 3, 4, 6, 7]].any()


def test_products_depend_on_distances_alone():
    near, far = turned(range(6)), turned(range(100, 106))
    products = [np.einsum("bnhd,bmhd->bhnm", a, a) for a in (near, far)]
    np.testing.assert_allclose(*products, atol=1e-4)


def test_odd_heads_are_refused():
    with pytest.raises(ValueError, match="even head_dim"):
        rotary_tables(jnp.zeros((1, 1), int), 7, 100.0)
