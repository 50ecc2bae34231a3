"""Products in half precision against the reference, on what passes for a GPU."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from internvideo_jax.kernels.attention import Request, request, xla_half

SEGMENTS = (jnp.arange(22).reshape(2, 11) % 3, jnp.arange(18).reshape(2, 9) % 3)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"scale": 0.7, "kv_lengths": jnp.array([0, 7])},
        {"segment_ids": SEGMENTS, "is_causal": True, "query_offset": 2},
        {"dropout_rate": 0.3, "dropout_rng": jax.random.key(1)},
    ],
    ids=["plain", "lengths", "segments", "dropout"],
)
def test_equals_the_reference(monkeypatch, make_qkv, outputs_and_gradients, dtype, options):
    """In relative L2: a rounding of the weights, and those of out and gradients."""
    monkeypatch.setattr(request, "current_platform", lambda: "gpu")
    qkv = make_qkv(2, 11, 9, 4, 2, 8, dtype=dtype)
    bias = jnp.asarray(np.random.default_rng(0).normal(size=(1, 4, 11, 9)), dtype)
    wide = tuple(x.astype(jnp.float32) for x in qkv)
    expected = outputs_and_gradients("reference", wide, bias.astype(jnp.float32), **options)
    found = outputs_and_gradients("xla_half", qkv, bias, **options)
    unit = 2**-8 if dtype == "bfloat16" else 2**-11
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        a, b = (np.asarray(x, np.float32) for x in (a, b))
        np.testing.assert_array_equal(np.isinf(a), np.isinf(b))
        a, b = a[np.isfinite(b)], b[np.isfinite(b)]
        assert np.linalg.norm(a - b) <= 3 * unit * np.linalg.norm(b)


def test_refusals_are_named():
    plain = Request(
        batch=1,
        queries=2049,
        keys=2049,
        heads=16,
        kv_heads=16,
        head_dim=88,
        dtype="float16",
        scale=0.1,
        platform="gpu",
    )
    assert xla_half.supports(plain) is None
    for change, reason in (
        ({"platform": "tpu"}, "for GPUs, found platform 'tpu'"),
        ({"dtype": "float32"}, "bfloat16 or float16, found float32"),
        ({"batch": 5}, "up to 268,435,456 scores in memory, found 335,872,080"),
    ):
        assert reason in xla_half.supports(Request(**{**vars(plain), **change}))
