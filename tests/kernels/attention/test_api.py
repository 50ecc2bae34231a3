"""Validation, the choice of an implementation, and what is returned."""

import re

import jax
import jax.numpy as jnp
import pytest

from internvideo_jax.kernels.attention import (
    Choice,
    Request,
    attention,
    available_implementations,
    prefer,
    select_implementation,
)
from internvideo_jax.kernels.attention.request import current_platform
from internvideo_jax.kernels.attention.shapes import SHAPES

SHORT = Request(
    batch=2,
    queries=16,
    keys=16,
    heads=4,
    kv_heads=4,
    head_dim=64,
    dtype="float32",
    scale=0.125,
    platform="cpu",
)


def long_request(platform: str, **changes) -> Request:
    shape = SHAPES["1b_f8"]
    sizes = {"queries": shape.tokens, "keys": shape.tokens, "batch": 8}
    heads = {"heads": shape.heads, "kv_heads": shape.heads, "head_dim": shape.head_dim}
    return Request(**{**vars(SHORT), **sizes, **heads, "platform": platform, **changes})


@pytest.fixture(autouse=True)
def without_preference(monkeypatch):
    monkeypatch.delenv("INTERNVIDEO_ATTENTION", raising=False)


@pytest.fixture
def qkv(make_qkv):
    return make_qkv(2, 3, 5, 4, 2, 8)


def test_returns_what_is_asked_in_order(qkv):
    shapes = {"out": (2, 3, 4, 8), "lse": (2, 4, 3), "weights": (2, 4, 3, 5)}
    assert attention(*qkv).shape == shapes["out"]
    for asked in (("lse",), ("weights",), ("lse", "weights")):
        results = attention(*qkv, **{f"return_{name}": True for name in asked})
        assert [x.shape for x in results] == [shapes[name] for name in ("out", *asked)]
        assert all(x.dtype == jnp.float32 for x in results)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"q": jnp.zeros((2, 3, 8))}, r"expected q as \[B, N, H, D\] .*, found \(2, 3, 8\)"),
        ({"k": jnp.zeros((2, 0, 2, 8))}, r"expected k as \[B, M, Hkv, D\] without empty axes"),
        ({"k": jnp.zeros((1, 5, 2, 8))}, r"expected k of shape \(2, 5, 2, 8\).*\(1, 5, 2, 8\)"),
        ({"v": jnp.zeros((2, 4, 2, 8))}, r"expected v of shape \(2, 5, 2, 8\) .*\(2, 4, 2, 8\)"),
        ({"q": jnp.zeros((2, 3, 5, 8))}, "the 2 key-value heads divide, found 5"),
        ({"v": jnp.zeros((2, 5, 2, 8), jnp.bfloat16)}, "found v of bfloat16 with q of float32"),
        ({"q": jnp.zeros((2, 3, 4, 8), jnp.int32)}, "float32, bfloat16, float16, found q of int32"),
        ({"bias": jnp.zeros((3, 5))}, r"expected bias as .* N=3, M=5, found \(3, 5\)"),
        (
            {"bias": jnp.ones((1, 1, 3, 5), bool)},
            r"found bool; .* jnp.where\(mask, 0.0, -jnp.inf\)",
        ),
        ({"segment_ids": (jnp.zeros((2, 3), int),)}, "expected segment_ids as a pair"),
        (
            {"segment_ids": (jnp.zeros((2, 3), int), jnp.zeros((2, 3), int))},
            r"segment_ids of the keys as integers of shape \(2, 5\), found int32 \(2, 3\)",
        ),
        ({"kv_lengths": jnp.zeros(2)}, r"kv_lengths as integers of shape \(2,\), found float32"),
        ({"is_causal": True, "query_offset": jnp.zeros(3, int)}, r"query_offset as integers"),
        ({"is_causal": True, "query_offset": 0.5}, r"query_offset as integers .* found float32"),
        ({"scale": jnp.ones(())}, r"expected scale as a Python number, found float32\[\]"),
        ({"dropout_rate": 1.0}, r"expected dropout_rate in \[0, 1\), found 1.0"),
        ({"dropout_rate": 0.1}, "expected a random key as dropout_rng"),
        (
            {"implementation": "flash"},
            "of cudnn, xla_half, xla_chunked, xla_heads, reference, pallas_tpu, found 'flash'",
        ),
    ],
)
def test_misfits_are_named(qkv, change, message):
    arguments = {**dict(zip("qkv", qkv, strict=True)), **change}
    with pytest.raises(ValueError, match=message):
        attention(**arguments)


def test_a_named_implementation_that_cannot_serve_says_why_and_which_can(qkv):
    message = re.escape(
        "attention implementation 'xla_chunked' cannot serve this call: return_weights needs all"
        " N×M weights in memory; the nearest that can is 'reference'"
    )
    with pytest.raises(ValueError, match=message):
        attention(*qkv, return_weights=True, implementation="xla_chunked")


@pytest.mark.parametrize("platform", ["cpu", "gpu", "tpu"])
def test_long_sequences_are_tiled_and_short_ones_are_not(platform):
    short = Request(**{**vars(SHORT), "platform": platform})
    assert select_implementation(short).name == "reference"
    assert select_implementation(long_request(platform)).name == "xla_chunked"
    # One example of them fits a GPU whole.
    one = select_implementation(long_request(platform, batch=1)).name
    assert one == ("reference" if platform == "gpu" else "xla_chunked")
    # Weights come from the reference alone.
    assert select_implementation(long_request(platform, return_weights=True)).name == "reference"


@pytest.mark.parametrize(
    ("frames", "name"), [(2, "reference"), (128, "xla_heads"), (256, "xla_heads")]
)
def test_a_tpu_takes_the_frames_of_an_image_teacher_head_by_head(frames, name):
    tokens, heads, head_dim = SHAPES["internvl"]
    sizes = {"batch": frames, "queries": tokens, "keys": tokens, "head_dim": head_dim}
    request = long_request("tpu", heads=heads, kv_heads=heads, **sizes)
    assert select_implementation(request).name == name


def test_the_environment_is_a_preference(qkv, monkeypatch):
    monkeypatch.setenv("INTERNVIDEO_ATTENTION", "xla_chunked")
    assert select_implementation(SHORT) == Choice(
        "xla_chunked", "preferred by INTERNVIDEO_ATTENTION"
    )
    unserved = Request(**{**vars(SHORT), "return_weights": True})
    name, reason = select_implementation(unserved)
    assert name == "reference"
    assert reason.startswith("INTERNVIDEO_ATTENTION=xla_chunked cannot serve: return_weights")
    assert attention(*qkv, return_weights=True)[1].shape == (2, 4, 3, 5)
    with prefer("reference"):
        assert select_implementation(SHORT) == Choice("reference", "preferred by prefer")
    # What the caller names counts.
    assert select_implementation(SHORT, "reference").name == "reference"


def test_an_unknown_preference_is_an_error(qkv, monkeypatch):
    monkeypatch.setenv("INTERNVIDEO_ATTENTION", "flash")
    message = "INTERNVIDEO_ATTENTION: expected an attention implementation of .*, found 'flash'"
    with pytest.raises(ValueError, match=message):
        attention(*qkv)


def test_what_is_available_on_cpu():
    assert available_implementations() == {
        "cudnn": "it needs an NVIDIA GPU, found platform 'cpu'",
        "pallas_tpu": None,
        "xla_half": "it is for GPUs, found platform 'cpu'",
        "xla_chunked": None,
        "xla_heads": None,
        "reference": None,
    }


def test_the_choice_is_logged(qkv, caplog):
    with caplog.at_level("DEBUG", logger="internvideo_jax.kernels.attention"):
        attention(*qkv)
    assert "reference (short) for Request(batch=2, queries=3, keys=5" in caplog.text


def test_the_platform_is_that_of_the_mesh():
    assert current_platform() == "cpu"
    mesh = jax.sharding.AbstractMesh(
        (4,),
        ("data",),
        axis_types=(jax.sharding.AxisType.Auto,),
        abstract_device=jax.sharding.AbstractDevice("TPU v5 lite", num_cores=1, platform="tpu"),
    )
    with jax.sharding.use_abstract_mesh(mesh):
        assert current_platform() == "tpu"


@pytest.mark.parametrize("name", SHAPES)
def test_shapes_of_the_models_trace(name):
    tokens, heads, head_dim = SHAPES[name]
    x = jax.ShapeDtypeStruct((1, tokens, heads, head_dim), jnp.bfloat16)
    assert jax.eval_shape(attention, x, x, x) == x
