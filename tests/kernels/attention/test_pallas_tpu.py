"""The TPU kernels, interpreted, against attention written out in float64."""

from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.experimental.pallas import tpu as pltpu

from internvideo_jax.kernels.attention import Request, attention, pallas_tpu, select_implementation
from internvideo_jax.kernels.attention.pallas_tpu import plan, table
from internvideo_jax.kernels.attention.pallas_tpu.causal import plan as causal
from internvideo_jax.kernels.attention.shapes import SHAPES
from internvideo_jax.parallel import aot
from tests.processes import run_cases

# Lengths with and without a last token that is set apart, with padding, of one and several tiles,
# with a smaller last tile, of several heads in a step; five are a loop over pairs.
CASES = {
    "class token": ((1, 257, 257, 2, 2, 88), table.Sizes(1, 128, 128)),
    "padding": ((2, 161, 161, 3, 3, 8), table.Sizes(3, 512, 128)),
    "smaller last tile": ((1, 300, 257, 2, 2, 16), table.Sizes(2, 256, 256)),
    "few keys": ((1, 385, 9, 1, 1, 24), table.Sizes(1, 128, 256)),
    "class token, several heads": ((1, 129, 385, 3, 3, 64), table.Sizes(3, 128, 256)),
    "many heads in a step": ((1, 20, 33, 5, 5, 8), table.Sizes(5, 128, 128)),
    "shared keys": ((2, 20, 33, 4, 2, 20), table.Sizes(8, 128, 128)),
}

# One tile with padding; a loop over tiles and blocks of two chunks, and a smaller last tile;
# blocks of one chunk.
CAUSAL = {
    "causal, one tile": ((1, 161, 161, 2, 1, 24), table.Sizes(1, 512, 256)),
    "causal, smaller last tile": ((1, 600, 600, 2, 1, 64), table.Sizes(1, 256, 128)),
    "causal, one chunk": ((1, 257, 257, 1, 1, 20), table.Sizes(1, 128, 256)),
}
CASES |= CAUSAL

SCALE = 0.2


@pytest.fixture
def cut(monkeypatch):
    """Function that sets the sizes which the kernels take instead of the table's."""

    def use(sizes: table.Sizes) -> None:
        monkeypatch.setattr(plan, "sizes_for", lambda *_: sizes)
        monkeypatch.setattr(causal, "TILE", sizes.tile)
        monkeypatch.setattr(causal, "CHUNK", sizes.chunk)

    return use


def written_out(q, k, v, is_causal):
    """Output and lse in float64, and what turns their gradients into those of q, k and v."""
    (b, _, h, d), kv_heads = q.shape, k.shape[2]
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    k, v = (np.repeat(x, h // kv_heads, axis=2) for x in (k, v))
    scores = np.einsum("bnhd,bmhd->bhnm", q, k) * SCALE
    if is_causal:
        scores = np.where(np.tri(q.shape[1], dtype=bool), scores, -np.inf)
    lse = np.log(np.exp(scores).sum(axis=-1))
    weights = np.exp(scores - lse[..., None])
    out = np.einsum("bhnm,bmhd->bnhd", weights, v)

    def pull_back(d_out, d_lse):
        d_out, d_lse = np.asarray(d_out, np.float64), np.asarray(d_lse, np.float64)
        d_weights = np.einsum("bnhd,bmhd->bhnm", d_out, v)
        mean = np.einsum("bnhd,bnhd->bhn", d_out, out) - d_lse
        d_scores = weights * (d_weights - mean[..., None]) * SCALE
        gradients = (
            np.einsum("bhnm,bmhd->bnhd", d_scores, k),
            np.einsum("bhnm,bnhd->bmhd", d_scores, q),
            np.einsum("bhnm,bnhd->bmhd", weights, d_out),
        )
        shared = (b, -1, kv_heads, h // kv_heads, d)
        dq, dk, dv = gradients
        return dq, *(x.reshape(shared).sum(axis=3) for x in (dk, dv))

    return out, lse, pull_back


def ours(q, k, v, is_causal):
    options = {"scale": SCALE, "return_lse": True, "implementation": "pallas_tpu"}
    return attention(q, k, v, is_causal=is_causal, **options)


def usual(q, k, v, is_causal):
    """XLA's bfloat16 path on a TPU, which rounds the weights for the second product."""
    k, v = (jnp.repeat(x, q.shape[2] // k.shape[2], axis=2) for x in (k, v))
    scores = jnp.einsum("bnhd,bmhd->bhnm", q, k, preferred_element_type=jnp.float32) * SCALE
    if is_causal:
        scores = jnp.where(np.tri(q.shape[1], dtype=bool), scores, -jnp.inf)
    weights = jax.nn.softmax(scores, axis=-1).astype(q.dtype)
    return jnp.einsum("bhnm,bmhd->bnhd", weights, v), jax.nn.logsumexp(scores, axis=-1)


def errors(function, qkv, is_causal=False):
    """Of out, lse and the gradients of both together, in relative L2.

    What is zero but for rounding has no size of its own, hence at least that of the inputs.
    """

    @jax.jit
    def call(qkv):
        (out, lse), pull_back = jax.vjp(partial(function, is_causal=is_causal), *qkv)
        d_out = jnp.cos(jnp.arange(out.size)).reshape(out.shape).astype(out.dtype)
        d_lse = jnp.sin(jnp.arange(lse.size)).reshape(lse.shape)
        return (out, lse, *pull_back((d_out, d_lse))), (d_out, d_lse)

    found, cotangents = call(qkv)
    out, lse, pull_back = written_out(*qkv, is_causal)
    expected = (out, lse, *pull_back(*cotangents))
    assert all(x.dtype == qkv[0].dtype for x in (found[0], *found[2:]))
    return [
        float(np.linalg.norm(np.asarray(a, np.float64) - b) / max(1, np.linalg.norm(b)))
        for a, b in zip(found, expected, strict=True)
    ]


@pytest.mark.parametrize("name", CASES)
def test_float32_is_exact(name, cut, make_qkv):
    shape, sizes = CASES[name]
    cut(sizes)
    assert max(errors(ours, make_qkv(*shape), name in CAUSAL)) < 1e-6


@pytest.mark.parametrize(
    "name", ["class token", "padding", "class token, several heads", *list(CAUSAL)[:2]]
)
def test_bfloat16_is_as_exact_as_xla(name, cut, make_qkv):
    """Half as much more error is allowed: weights are rounded before they are divided."""
    shape, sizes = CASES[name]
    cut(sizes)
    qkv = make_qkv(*shape, dtype=jnp.bfloat16)
    found, of_xla = (errors(function, qkv, name in CAUSAL) for function in (ours, usual))
    (out, lse, *gradients), (xla_out, _, *xla_gradients) = found, of_xla
    assert out <= 1.5 * xla_out
    assert all(a <= 1.5 * b for a, b in zip(gradients, xla_gradients, strict=True))
    assert lse < 1e-6


@pytest.mark.parametrize("name", ["padding", "class token, several heads", "smaller last tile"])
def test_bfloat16_without_lse_is_as_exact_as_xla(name, cut, make_qkv):
    """Then sums are of rounded weights, or keys carry the scale."""

    def without_lse(q, k, v, is_causal):
        out = attention(q, k, v, scale=SCALE, is_causal=is_causal, implementation="pallas_tpu")
        return out, usual(q, k, v, is_causal)[1]

    shape, sizes = CASES[name]
    cut(sizes._replace(split_keys=True))
    qkv = make_qkv(*shape, dtype=jnp.bfloat16)
    found, xla = errors(without_lse, qkv), errors(usual, qkv)
    assert all(a <= 1.5 * b for a, b in zip(found, xla, strict=True))


@pytest.mark.parametrize("examples", [2, pytest.param(20, marks=pytest.mark.slow)])
def test_any_shape(examples, cut, make_qkv):
    @settings(max_examples=examples)
    @given(data=st.data())
    def run(data):
        lengths = st.integers(1, 300) | st.sampled_from([128, 129, 256, 257])
        n, m = data.draw(lengths), data.draw(lengths)
        kv_heads, group = data.draw(st.sampled_from([(1, 1), (3, 1), (4, 1), (2, 2)]))
        d = data.draw(st.sampled_from([4, 8, 20, 64, 88]))
        sizes = (st.integers(1, 4), st.sampled_from([128, 256]), st.sampled_from([128, 256]))
        cut(table.Sizes(*(data.draw(size) for size in sizes)))
        assert max(errors(ours, make_qkv(1, n, m, kv_heads * group, kv_heads, d))) < 1e-5

    run()


@pytest.mark.slow
@pytest.mark.parametrize("name", SHAPES)
def test_shapes_of_the_models(name, make_qkv):
    """With the sizes of the table, one head; the bounds are those of bfloat16."""
    tokens, _, head_dim = SHAPES[name]
    qkv = make_qkv(1, tokens, tokens, 1, 1, head_dim, dtype=jnp.bfloat16)
    assert max(errors(ours, qkv)) < 5e-3


@pytest.mark.parametrize(
    "name", ["class token", "class token, several heads", "padding", "causal, one tile"]
)
def test_kernels_read_nothing_that_was_not_written(name, cut, make_qkv, capfd):
    """Memory that nobody wrote is NaN, and nothing is read beyond a buffer or during a write."""
    (b, n, m, h, kv_heads, d), sizes = CASES[name]
    cut(sizes._replace(split_keys=True))
    request = Request(b, n, m, h, kv_heads, d, "bfloat16", 1.0, "cpu", is_causal=name in CAUSAL)
    strict = pltpu.InterpretParams(
        uninitialized_memory="nan", out_of_bounds_reads="raise", detect_races=True
    )
    forward, backward = pallas_tpu.kernels_of(request)
    q, k, v = make_qkv(b, n, m, h, kv_heads, d, dtype=jnp.bfloat16)
    by_head = [pallas_tpu._by_head(request, x) for x in (q, k, v)]
    out, lse = forward(pallas_tpu.plan_of(request, "forward"), *by_head, strict)
    gradients = backward(
        pallas_tpu.plan_of(request, "backward"), *by_head, out, lse, out, None, strict
    )
    assert all(bool(jnp.isfinite(x.astype(jnp.float32)).all()) for x in (out, lse, *gradients))
    assert "RACE" not in capfd.readouterr().out


def test_works_inside_scan_remat_vmap_and_jit(make_qkv, fast_jit):
    q, k, v = make_qkv(2, 7, 7, 4, 4, 4)

    def loss(implementation, q):
        def layer(x, _):
            return attention(x, k, v, implementation=implementation), None

        return jnp.sum(jnp.sin(jax.lax.scan(jax.checkpoint(layer), q, None, length=3)[0]))

    stacked = jnp.stack([q, 2 * q])
    expected = fast_jit(jax.vmap(jax.grad(lambda q: loss("reference", q))))(stacked)
    found = fast_jit(jax.vmap(jax.grad(lambda q: loss("pallas_tpu", q))))(stacked)
    np.testing.assert_allclose(found, expected, atol=1e-5)


PLAIN = Request(8, 2049, 2049, 16, 16, 88, "bfloat16", 0.1, "tpu")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"bias_shape": (1, 1, 2049, 2049)}, "a bias is not part of this kernel"),
        ({"has_kv_lengths": True}, "kv_lengths is not part"),
        ({"is_causal": True}, "is_causal with an offset or more keys is not part"),
        ({"is_causal": True, "starts_at_zero": True, "keys": 4096}, "is_causal with an offset or"),
        ({"dropout_rate": 0.1}, "dropout is not part"),
        ({"platform": "gpu"}, "needs a TPU, or a CPU that interprets it"),
        ({"dtype": "float16"}, "cast to bfloat16"),
        ({"scale": 0.0}, "the scale must be above zero"),
        ({"keys": 100_000}, "must fit into .* MiB of vector memory, the .* pass of 2049 queries"),
    ],
)
def test_what_is_refused(change, reason):
    request = Request(**{**vars(PLAIN), **change})
    with pytest.raises(ValueError, match=reason):
        select_implementation(request, "pallas_tpu")


# Short texts of many examples.
CLIP_TEXT = {"is_causal": True, "starts_at_zero": True, "batch": 256, "queries": 77, "keys": 77}


@pytest.mark.parametrize(
    ("chip", "change", "name"),
    [
        ("v5e", {}, "pallas_tpu"),
        ("v6e", {"batch": 32, "queries": 417, "keys": 417}, "pallas_tpu"),
        ("v6e", {"batch": 128, "queries": 257, "keys": 257}, "xla_heads"),
        ("v5p", {}, "xla_chunked"),
        ("v5e", {"dtype": "float32"}, "xla_chunked"),
        ("v5e", {"kv_heads": 4}, "xla_chunked"),
        ("v5e", {"queries": 96, "batch": 64}, "xla_heads"),
        ("v5e", {"is_causal": True}, "xla_chunked"),
        ("v5e", {"is_causal": True, "starts_at_zero": True, "kv_heads": 4}, "pallas_tpu"),
        ("v5e", CLIP_TEXT, "xla_heads"),
    ],
)
def test_it_is_chosen_where_estimates_are_better(monkeypatch, chip, change, name):
    monkeypatch.setattr(table, "generation", lambda: chip)
    monkeypatch.delenv("INTERNVIDEO_ATTENTION", raising=False)
    assert select_implementation(Request(**{**vars(PLAIN), **change})).name == name


def test_it_can_be_preferred_and_turned_off(monkeypatch):
    monkeypatch.setattr(table, "generation", lambda: "v5p")
    monkeypatch.setenv("INTERNVIDEO_ATTENTION", "pallas_tpu")
    assert select_implementation(PLAIN).name == "pallas_tpu"
    causal = Request(**{**vars(PLAIN), "is_causal": True})
    name, reason = select_implementation(causal)
    assert name == "xla_chunked"
    assert reason.startswith("INTERNVIDEO_ATTENTION=pallas_tpu cannot serve: is_causal")
    monkeypatch.setattr(table, "generation", lambda: "v5e")
    monkeypatch.setenv("INTERNVIDEO_ATTENTION", "xla_heads")
    assert select_implementation(PLAIN).name == "xla_heads"


@settings(max_examples=100)
@given(tokens=st.integers(1, 3000), name=st.sampled_from(["forward", "backward"]))
def test_causal_tiles_hold_whole_chunks(tokens, name):
    options = {"queries": tokens, "keys": tokens, "is_causal": True, "platform": "cpu"}
    made = causal.make_causal_plan(Request(**{**vars(PLAIN), **options}), name)
    assert made.tile % made.chunk == made.rest % made.chunk == made.chunk % plan.LANES == 0
    assert made.full_tiles >= 1
    tiled = made.full_tiles * made.tile + made.rest
    assert tokens <= tiled < tokens + plan.LANES


@settings(max_examples=200)
@given(
    queries=st.integers(1, 3000),
    keys=st.integers(1, 3000),
    name=st.sampled_from(["forward", "backward"]),
)
def test_tiles_and_chunks_cover_all_tokens(queries, keys, name):
    made = plan.make_plan(
        Request(**{**vars(PLAIN), "queries": queries, "keys": keys, "platform": "cpu"}), name
    )
    assert made.full_tiles >= 1
    tiled = made.full_tiles * made.tile + made.rest
    assert queries <= tiled + made.odd_query <= queries + plan.LANES
    stops = [chunk.stop for chunk in made.chunks]
    assert [chunk.start for chunk in made.chunks] == [0, *stops[:-1]]
    assert all(stop % plan.LANES == 0 for stop in stops[:-1])
    assert keys <= stops[-1] + made.odd_key <= keys + plan.ROWS


def test_the_table_is_small_and_of_known_classes():
    assert len(table.TABLE) <= 24
    for generation, name, kind in table.TABLE:
        assert generation in {"v5e", "v5p", "v6e", "tpu7x"}
        assert name in {"forward", "backward"}
        assert kind in {"short", "frame", "narrow", "wide"}


@pytest.mark.slow
@pytest.mark.skipif(aot.compiler_version() is None, reason="libtpu is not installed")
def test_with_the_tpu_compiler():
    run_cases(Path(__file__).with_name("tpu_kernel_cases.py"), **aot.ENVIRONMENT)
