"""Inputs and comparisons shared by the attention tests."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from internvideo_jax.kernels.attention import attention, tiles

Inputs = tuple[jax.Array, jax.Array, jax.Array]


@pytest.fixture
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cuts tiny inputs into several blocks and tiles, with padded rows."""
    monkeypatch.setattr(tiles, "_CPU_TILE_SCORES", 48)
    monkeypatch.setattr(tiles, "_MIN_ROWS", 2)


@pytest.fixture
def make_qkv() -> Callable[..., Inputs]:
    """Normal q [B, N, H, D], k and v [B, M, Hkv, D]."""

    def make(
        b: int, n: int, m: int, h: int, kv_heads: int, d: int, *, dtype: Any = jnp.float32
    ) -> Inputs:
        numbers = np.random.default_rng(n * 1000 + m)
        shapes = ((b, n, h, d), (b, m, kv_heads, d), (b, m, kv_heads, d))
        return tuple(jnp.asarray(numbers.standard_normal(s), dtype) for s in shapes)

    return make


@pytest.fixture
def fast_jit() -> Callable[..., Any]:
    """`jax.jit` for tiny inputs: most of the time of these tests is spent in the compiler."""
    return partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


@pytest.fixture
def outputs_and_gradients(fast_jit: Callable[..., Any]) -> Callable[..., Any]:
    """Out, lse, and the gradients of both together with respect to q, k, v and bias."""

    def run(implementation: str, qkv: Inputs, bias: jax.Array | None = None, **options: Any) -> Any:
        @fast_jit
        def call(qkv: Inputs, bias: jax.Array | None) -> Any:
            def outputs(qkv: Inputs, bias: jax.Array | None) -> tuple[jax.Array, ...]:
                return attention(
                    *qkv, bias=bias, return_lse=True, implementation=implementation, **options
                )

            (out, lse), pull_back = jax.vjp(outputs, qkv, bias)
            d_out = jnp.cos(jnp.arange(out.size)).reshape(out.shape).astype(out.dtype)
            d_lse = jnp.sin(jnp.arange(lse.size)).reshape(lse.shape)
            d_lse = jnp.where(jnp.isfinite(lse), d_lse, 0)
            return out, lse, pull_back((d_out, d_lse))

        return call(qkv, bias)

    return run


@pytest.fixture
def assert_close() -> Callable[..., None]:
    """Equal within 1e-5 of the largest expected entry, at least of 1, the size of the inputs.

    Float32 sums in another order; a gradient that is zero but for rounding has no size of its own.
    """

    def check(found: Any, expected: Any, tolerance: float = 1e-5) -> None:
        assert jax.tree.structure(found) == jax.tree.structure(expected)
        for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
            assert a.shape == b.shape
            assert a.dtype == b.dtype
            a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
            infinite = np.isinf(b)
            np.testing.assert_array_equal(a[infinite], b[infinite])
            a, b = a[~infinite], b[~infinite]
            if b.size:
                np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * max(1, np.abs(b).max()))

    return check
