import jax
import jax.numpy as jnp
import numpy as np
import pytest

from internvideo_jax.nn.normalization import BatchNorm, l2_normalize, layer_norm, rms_norm


def test_rms_norm_follows_its_formula_over_two_dimensions():
    x = np.random.default_rng(0).normal(size=(2, 5, 3, 4)).astype(np.float32)
    norm = rms_norm(1e-6, jnp.float32, "norm", ("heads", "head_dim"))
    scale = np.random.default_rng(1).normal(size=(3, 4)).astype(np.float32)
    got = norm.apply({"params": {"scale": scale}}, x)
    wide = x.astype(np.float64)
    want = wide / np.sqrt((wide**2).mean((-2, -1), keepdims=True) + 1e-6) * scale
    np.testing.assert_allclose(got, want, rtol=2e-6, atol=2e-6)


def test_statistics_are_float32_for_half_precision_inputs():
    # 4096 ones and one 256: the mean square in bfloat16 would lose the ones.
    x = jnp.ones((1, 4097), jnp.bfloat16).at[0, 0].set(256)
    norm = rms_norm(1e-6, jnp.bfloat16, "norm")
    out = norm.apply({"params": {"scale": jnp.ones(4097)}}, x)
    want = 1 / np.sqrt((4096 + 256**2) / 4097)
    assert out.dtype == jnp.bfloat16
    np.testing.assert_allclose(float(out[0, 1]), want, rtol=2**-8)


def test_layer_norm_survives_a_large_mean():
    # The one-pass variance E[x^2] - E[x]^2 cancels to noise here.
    x = 1e4 + np.random.default_rng(0).normal(size=(4, 64)).astype(np.float32)
    params = {"scale": np.ones(64), "bias": np.zeros(64)}
    got = layer_norm(1e-5, jnp.float32, "norm").apply({"params": params}, x)
    wide = x.astype(np.float64)
    want = (wide - wide.mean(-1, keepdims=True)) / np.sqrt(wide.var(-1, keepdims=True) + 1e-5)
    np.testing.assert_allclose(got, want, atol=2e-3)


@pytest.mark.parametrize("affine", [True, False])
def test_batch_norm_keeps_unbiased_running_variance(affine):
    x = np.random.default_rng(0).normal(2, 3, size=(4, 5, 6)).astype(np.float32)
    norm = BatchNorm(1e-5, affine)
    variables = norm.init(jax.random.key(0), x, use_running_average=True)
    out, state = norm.apply(variables, x, use_running_average=False, mutable=["batch_stats"])
    rows = x.reshape(-1, 6)
    np.testing.assert_allclose(state["batch_stats"]["mean"], 0.1 * rows.mean(0), rtol=1e-5)
    np.testing.assert_allclose(
        state["batch_stats"]["var"], 0.9 + 0.1 * rows.var(0, ddof=1), rtol=1e-5
    )
    np.testing.assert_allclose(np.asarray(out).reshape(-1, 6).std(0), 1, rtol=1e-4)
    assert ("params" in variables) == affine


def test_l2_normalize_gives_unit_length_and_keeps_zero_vectors_with_finite_gradient():
    x = jnp.array([[3e-12, 4e-12], [0.0, 0.0], [3.0, 4.0]])
    np.testing.assert_allclose(l2_normalize(x), [[0.6, 0.8], [0, 0], [0.6, 0.8]], rtol=1e-5)
    grad = jax.grad(lambda x: l2_normalize(x)[:, 0].sum())(x)
    assert np.isfinite(grad).all()
