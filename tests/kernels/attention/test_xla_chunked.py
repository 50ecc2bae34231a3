"""The tiled implementation against the reference, on tiles so small that every seam is crossed."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from internvideo_jax.kernels.attention import Request, attention, tiles

OPTIONS = ("bias", "causal", "segments", "lengths", "dropout", "scale")


def plain_request(**changes) -> Request:
    fields = {
        "batch": 1,
        "queries": 1,
        "keys": 1,
        "heads": 1,
        "kv_heads": 1,
        "head_dim": 8,
        "dtype": "float32",
        "scale": 1.0,
        "platform": "cpu",
    }
    return Request(**{**fields, **changes})


@pytest.mark.parametrize(
    ("b", "n", "m", "h", "kv_heads", "d", "bias_shape"),
    [
        (2, 1, 9, 4, 4, 8, None),
        (1, 13, 1, 2, 1, 4, (1, 1)),
        (2, 17, 5, 6, 2, 3, (2, 1)),
        (2, 17, 5, 6, 2, 3, (1, 6)),
        (2, 5, 7, 4, 4, 8, (2, 4)),
    ],
)
def test_equals_the_reference(
    b, n, m, h, kv_heads, d, bias_shape, small_tiles, make_qkv, outputs_and_gradients, assert_close
):
    qkv = make_qkv(b, n, m, h, kv_heads, d)
    bias = None
    if bias_shape is not None:
        bias = jnp.asarray(np.random.default_rng(0).standard_normal((*bias_shape, n, m)))
    expected = outputs_and_gradients("reference", qkv, bias)
    assert_close(outputs_and_gradients("xla_chunked", qkv, bias), expected)


@pytest.mark.parametrize("implementation", ["xla_chunked", "xla_heads"])
@pytest.mark.parametrize("examples", [3, pytest.param(80, marks=pytest.mark.slow)])
def test_any_combination_of_options_equals_the_reference(
    implementation, examples, small_tiles, make_qkv, outputs_and_gradients, assert_close
):
    @settings(max_examples=examples)
    @given(data=st.data())
    def run(data):
        b, n, m = (data.draw(st.integers(1, top)) for top in (2, 11, 11))
        kv_heads, group = data.draw(st.sampled_from([(1, 1), (1, 3), (2, 1), (2, 2), (4, 1)]))
        heads = kv_heads * group
        numbers = np.random.default_rng(data.draw(st.integers(0, 99)))
        asked = data.draw(st.sets(st.sampled_from(OPTIONS), min_size=2), label="options")
        bias, options = None, {}
        if "bias" in asked:
            leading = [data.draw(st.sampled_from([1, x])) for x in (b, heads)]
            bias = jnp.asarray(numbers.normal(size=(*leading, n, m)), jnp.float32)
        if "causal" in asked:
            shape = data.draw(st.sampled_from([(), (b,)]))
            offset = jnp.asarray(numbers.integers(-3, 4, shape))
            options |= {"is_causal": True, "query_offset": offset}
        if "segments" in asked:
            ids = (numbers.integers(0, 3, (b, length)) for length in (n, m))
            options["segment_ids"] = tuple(map(jnp.asarray, ids))
        if "lengths" in asked:
            options["kv_lengths"] = jnp.asarray(numbers.integers(0, m + 1, b))
        if "dropout" in asked:
            options |= {"dropout_rate": 0.3, "dropout_rng": jax.random.key(numbers.integers(99))}
        if "scale" in asked:
            options["scale"] = 0.7
        qkv = make_qkv(b, n, m, heads, kv_heads, 4)
        expected = outputs_and_gradients("reference", qkv, bias, **options)
        found = outputs_and_gradients(implementation, qkv, bias, **options)
        assert_close(found, expected)

    run()


def test_real_tiles_equal_the_reference(make_qkv, outputs_and_gradients, assert_close):
    qkv = make_qkv(1, 257, 300, 4, 2, 8)
    expected = outputs_and_gradients("reference", qkv)
    assert_close(outputs_and_gradients("xla_chunked", qkv), expected)


def test_half_precision_gradients(small_tiles, make_qkv, outputs_and_gradients):
    """In relative L2: both round out and gradients once, the tiled one also uses the rounded out.

    Three roundings of 2^-8 relative each.
    """
    qkv = make_qkv(2, 17, 13, 4, 2, 8, dtype=jnp.bfloat16)
    wide = tuple(x.astype(jnp.float32) for x in qkv)
    expected = outputs_and_gradients("reference", wide)
    found = outputs_and_gradients("xla_chunked", qkv)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert a.dtype == (jnp.float32 if a is found[1] else jnp.bfloat16)
        assert jnp.linalg.norm(a.astype(jnp.float32) - b) <= 3 * 2**-8 * jnp.linalg.norm(b)


def test_causal_attention_with_a_cache_equals_that_of_the_whole(small_tiles, make_qkv):
    """Queries one by one at a traced offset, in one compiled function, against all at once."""
    q, k, v = make_qkv(2, 9, 9, 4, 2, 4)
    whole = attention(q, k, v, is_causal=True, implementation="xla_chunked")

    @jax.jit
    def step(query, offset):
        return attention(
            query, k, v, is_causal=True, query_offset=offset, implementation="xla_chunked"
        )

    for n in range(9):
        np.testing.assert_allclose(step(q[:, n : n + 1], n), whole[:, n : n + 1], atol=1e-6)


def test_works_inside_scan_remat_vmap_and_jit(small_tiles, make_qkv, fast_jit):
    q, k, v = make_qkv(2, 7, 7, 4, 4, 4)

    def loss(implementation, q):
        def layer(x, _):
            return attention(x, k, v, implementation=implementation), None

        return jnp.sum(jnp.sin(jax.lax.scan(jax.checkpoint(layer), q, None, length=3)[0]))

    stacked = jnp.stack([q, 2 * q])
    expected = fast_jit(jax.vmap(jax.grad(lambda q: loss("reference", q))))(stacked)
    found = fast_jit(jax.vmap(jax.grad(lambda q: loss("xla_chunked", q))))(stacked)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_works_inside_shard_map(small_tiles, make_qkv, fast_jit):
    """With JAX's check of what varies over the mesh, which loops must respect."""
    q, k, v = make_qkv(2, 7, 5, 4, 2, 4)
    mesh = jax.make_mesh((1,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    split = jax.sharding.PartitionSpec("data")

    def gradients(q, k, v):
        def total(*qkv):
            return attention(*qkv, implementation="xla_chunked").sum()

        return jax.grad(total, (0, 1, 2))(q, k, v)

    sharded = jax.shard_map(gradients, mesh=mesh, in_specs=split, out_specs=split)
    for a, b in zip(fast_jit(sharded)(q, k, v), fast_jit(gradients)(q, k, v), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


@pytest.mark.parametrize("gradient", [False, True])
def test_memory_stays_far_below_that_of_all_scores(gradient):
    n, h = 2500, 8
    x = jax.ShapeDtypeStruct((1, n, h, 16), jnp.float32)

    def run(q, k, v):
        return attention(q, k, v, implementation="xla_chunked").sum()

    run = jax.grad(run, (0, 1, 2)) if gradient else run
    memory = jax.jit(run).lower(x, x, x).compile().memory_analysis()
    one_tile = 4 * tiles._CPU_TILE_SCORES
    assert memory.temp_size_in_bytes < (4 if gradient else 3) * one_tile
    assert 4 * one_tile < 4 * h * n * n


@settings(max_examples=200)
@given(
    queries=st.integers(1, 10_000),
    keys=st.integers(1, 10_000),
    kv_heads=st.integers(1, 40),
    platform=st.sampled_from(["cpu", "tpu"]),
)
def test_tiles_cover_all_rows_and_stay_small(queries, keys, kv_heads, platform):
    request = plain_request(
        queries=queries, keys=keys, heads=kv_heads, kv_heads=kv_heads, platform=platform
    )
    cut = tiles.tiling(request)
    limit = tiles._CPU_TILE_SCORES if platform == "cpu" else tiles._TPU_TILE_SCORES
    assert kv_heads % cut.kv_heads == 0
    assert queries <= cut.rows * cut.tiles < queries + cut.tiles
    assert cut.kv_heads * cut.rows * keys <= max(limit, tiles._MIN_ROWS * keys)


def test_tiles_of_the_models():
    """On CPU: a third of the 2049 queries of one head, half of the student's heads."""
    cut = tiles.tiling(plain_request(queries=2049, keys=2049, heads=12, kv_heads=12))
    assert cut == tiles.Tiling(kv_heads=1, rows=683, tiles=3)
    cut = tiles.tiling(plain_request(queries=417, keys=417, heads=16, kv_heads=16))
    assert cut == tiles.Tiling(kv_heads=8, rows=417, tiles=1)
