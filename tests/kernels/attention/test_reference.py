"""The reference against the definition written out in NumPy, row by row in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from internvideo_jax.kernels.attention import attention
from internvideo_jax.kernels.attention.masks import Dropout, dropout_keep

B, N, M, H, KV, D = 2, 5, 7, 4, 2, 8
STATIC = ("is_causal", "return_lse", "return_weights", "implementation")
SEGMENTS = (
    np.array([[0, 0, 1, 1, 9], [2, 2, 2, 2, 2]]),
    np.array([[0, 1, 1, 0, 0, 1, 3], [2, 2, 0, 0, 2, 2, 2]]),
)


def written_out(q, k, v, *, bias=None, segment_ids=None, kv_lengths=None, offset=None):
    """Out, lse and weights of one row after another."""
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    out, lse = np.zeros((B, N, H, D)), np.full((B, H, N), -np.inf)
    weights = np.zeros((B, H, N, M))
    for b, h, n in np.ndindex(B, H, N):
        scores = k[b, :, h // (H // KV)] @ q[b, n, h] / np.sqrt(D)
        if bias is not None:
            scores += np.broadcast_to(bias, (B, H, N, M))[b, h, n]
        seen = np.isfinite(scores)
        if segment_ids is not None:
            seen &= segment_ids[0][b, n] == segment_ids[1][b]
        if kv_lengths is not None:
            seen &= np.arange(M) < kv_lengths[b]
        if offset is not None:
            seen &= np.arange(M) <= n + np.broadcast_to(offset, B)[b]
        if seen.any():
            lse[b, h, n] = np.log(np.exp(scores[seen]).sum())
            weights[b, h, n, seen] = np.exp(scores[seen] - lse[b, h, n])
            out[b, n, h] = weights[b, h, n] @ v[b, :, h // (H // KV)]
    return out, lse, weights


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"bias": np.linspace(-2, 2, B * H * N * M).reshape(B, H, N, M)},
        {"bias": np.where(np.arange(N * M) % 3, 0.5, -np.inf).reshape(1, 1, N, M)},
        {"segment_ids": SEGMENTS},
        {"is_causal": True},
        {"is_causal": True, "query_offset": np.array([2, -1])},
        {"is_causal": True, "query_offset": -2, "kv_lengths": np.array([7, 2])},
    ],
    ids=["plain", "bias", "hiding-bias", "segments", "causal", "caches", "lengths"],
)
def test_equals_the_definition(options, make_qkv, assert_close, fast_jit):
    qkv = make_qkv(B, N, M, H, KV, D)
    offset = options.get("query_offset", 0) if options.get("is_causal") else None
    plain = {k: v for k, v in options.items() if k not in ("is_causal", "query_offset")}
    expected = written_out(*qkv, **plain, offset=offset)
    options = jax.tree.map(lambda x: jnp.asarray(x) if isinstance(x, np.ndarray) else x, options)
    found = fast_jit(attention, static_argnames=STATIC)(
        *qkv, **options, return_lse=True, return_weights=True, implementation="reference"
    )
    assert_close(found, tuple(x.astype(np.float32) for x in expected))


def test_scale_replaces_the_default(make_qkv, assert_close):
    q, k, v = make_qkv(B, N, M, H, KV, D)
    found = attention(q, k, v, scale=0.5, implementation="reference")
    assert_close(found, attention(q * 0.5 * D**0.5, k, v, implementation="reference"))


def test_gradients_are_those_of_the_function(make_qkv):
    q, k, v = make_qkv(1, 3, 4, 2, 1, 4)
    bias = jnp.linspace(-1, 1, 24).reshape(1, 2, 3, 4)

    @jax.jit
    def outputs(q, k, v, bias):
        return attention(
            q,
            k,
            v,
            bias=bias,
            kv_lengths=jnp.array([3]),
            return_lse=True,
            return_weights=True,
            implementation="reference",
        )

    # Differences over 1e-2: below, float32 rounding is larger than the error of the quotient.
    options = {"order": 1, "modes": ["rev"], "eps": 1e-2, "atol": 1e-2, "rtol": 1e-2}
    check_grads(outputs, (q, k, v, bias), **options)


@pytest.mark.parametrize(
    ("how", "implementation"),
    [
        ("lengths", "reference"),
        ("bias", "reference"),
        ("lengths", "xla_chunked"),
        ("segments", "xla_chunked"),
        ("causal", "xla_chunked"),
        ("bias", "xla_chunked"),
    ],
)
def test_rows_that_see_nothing_give_zeros_and_zero_gradients(
    how, implementation, make_qkv, outputs_and_gradients, small_tiles
):
    qkv = make_qkv(B, N, M, H, KV, D)
    bias = jnp.zeros((B, H, N, M))
    options = {}
    if how == "lengths":
        blind, options = np.s_[1], {"kv_lengths": jnp.array([2, 0])}
    elif how == "segments":
        blind, options = np.s_[0, 4:], {"segment_ids": jax.tree.map(jnp.asarray, SEGMENTS)}
    elif how == "causal":
        blind, options = np.s_[:, :3], {"is_causal": True, "query_offset": -3}
    else:
        blind, bias = np.s_[:, 1], bias.at[:, :, 1].set(-jnp.inf)
    out, lse, ((dq, dk, dv), d_bias) = outputs_and_gradients(implementation, qkv, bias, **options)
    assert all(bool(jnp.isfinite(x).all()) for x in (out, dq, dk, dv, d_bias))
    assert not out[blind].any()
    assert not dq[blind].any()
    assert not d_bias.swapaxes(1, 2)[blind].any()
    np.testing.assert_array_equal(lse.swapaxes(1, 2)[blind], -np.inf)
    assert out.any()
    assert dq.any()
    if how == "lengths":
        assert not dk[1].any()
        assert not dv[1].any()


@pytest.mark.parametrize(
    ("implementation", "dtype"), [("reference", jnp.bfloat16), ("xla_chunked", jnp.float16)]
)
def test_half_precision_is_float32_inside(dtype, implementation, make_qkv):
    """The inputs widened, everything in float32, and one rounding at the end: bit for bit."""
    qkv = make_qkv(B, N, M, H, KV, D, dtype=dtype)
    wide = [x.astype(jnp.float32) for x in qkv]
    out, lse = attention(*qkv, return_lse=True, implementation=implementation)
    wide_out, wide_lse = attention(*wide, return_lse=True, implementation=implementation)
    assert (out.dtype, lse.dtype) == (dtype, jnp.float32)
    np.testing.assert_array_equal(out, wide_out.astype(dtype))
    np.testing.assert_array_equal(lse, wide_lse)


def test_large_scores_neither_overflow_nor_vanish(make_qkv, assert_close):
    """A softmax does not change when a row's scores move together, however far."""
    qkv = make_qkv(B, N, M, H, KV, D)
    expected = attention(*qkv, implementation="reference")
    for shift in (-1e4, 1e4):
        bias = jnp.full((1, 1, N, M), shift)
        for implementation in ("reference", "xla_chunked"):
            found = attention(*qkv, bias=bias, implementation=implementation)
            # Scores near 1e4 carry an error of 1e4 · 2^-24.
            assert_close(found, expected, tolerance=2e-3)


def test_dropout_drops_weights_and_keeps_their_expectation(make_qkv):
    """With v the identity, out shows which weights were kept, scaled by 1 / (1 - rate)."""
    rate, m = 0.25, 64
    q = jnp.zeros((4, 32, 2, m))
    v = jnp.broadcast_to(jnp.eye(m)[None, :, None], (4, m, 2, m))
    out, weights = attention(
        q,
        jnp.zeros_like(v),
        v,
        dropout_rate=rate,
        dropout_rng=jax.random.key(3),
        return_weights=True,
        implementation="reference",
    )
    np.testing.assert_allclose(weights, 1 / m, rtol=1e-6)
    kept = np.asarray(out) > 0
    np.testing.assert_allclose(out[kept], 1 / m / (1 - rate), rtol=1e-6)
    # 16384 draws: four standard deviations are 0.0135.
    assert abs(kept.mean() - (1 - rate)) < 0.0135


def test_dropout_draws_are_independent():
    """Each pair of rows, keys, heads, examples and seeds agrees as often as independent draws."""
    seeds = jax.random.bits(jax.random.key(0), (2, 2), jnp.uint32)

    def keep(seed=seeds[0], example=0, head=0):
        place = (*map(jnp.asarray, (example, head)), jnp.arange(256))
        return np.asarray(dropout_keep(Dropout(seed, jnp.zeros(3, int)), *place, 256, 0.5))

    one = keep()
    for other in (keep(seeds[1]), keep(example=1), keep(head=1), keep(example=1, head=1)):
        assert abs((one == other).mean() - 0.5) < 0.008
    assert abs(one.mean() - 0.5) < 0.008
    for x in (one, one.T):
        centred = (x - x.mean(axis=1, keepdims=True)) / x.std(axis=1, keepdims=True)
        correlation = centred @ centred.T / 256
        np.fill_diagonal(correlation, 0)
        # The largest of 32640 correlations of 256 independent draws lies near 4.2 / sqrt(256).
        assert np.abs(correlation).max() < 6 / 16
        assert abs(np.square(correlation).sum() / (256 * 255) * 256 - 1) < 0.1


@pytest.mark.parametrize("implementation", ["reference", "xla_chunked"])
def test_a_part_of_a_call_drops_what_the_whole_drops(implementation, make_qkv, small_tiles):
    q, k, v = make_qkv(4, 6, M, H, H, D)
    options = {"dropout_rate": 0.5, "dropout_rng": jax.random.key(1)}
    whole = attention(q, k, v, **options, implementation=implementation)
    part = attention(
        q[1:3, 4:, 2:],
        k[1:3, :, 2:],
        v[1:3, :, 2:],
        **options,
        dropout_origin=(1, 2, 4),
        implementation=implementation,
    )
    np.testing.assert_allclose(part, whole[1:3, 4:, 2:], atol=1e-6)
