"""The way to cuDNN and back, with its two operations emulated on CPU, and lowered for CUDA."""

import re
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.interpreters import mlir

from internvideo_jax.kernels.attention import (
    Request,
    attention,
    cudnn,
    select_implementation,
)
from internvideo_jax.kernels.attention import request as request_module

SUPPORTED = Request(
    batch=2,
    queries=2049,
    keys=2049,
    heads=16,
    kv_heads=16,
    head_dim=88,
    dtype="bfloat16",
    scale=0.1,
    platform="gpu",
)
# B, N, H, Hkv, D and whether it is causal: the rows of docs/gpu.md.
SHAPES = [
    (16, 2049, 16, 16, 88, False),
    (32, 417, 16, 16, 88, False),
    (8, 2049, 25, 25, 128, False),
    (32, 411, 25, 25, 128, False),
    (64, 257, 25, 25, 128, False),
    (16, 2048, 16, 16, 88, False),
    (16, 1025, 16, 16, 88, False),
    (8, 4097, 16, 16, 88, False),
    (4, 4097, 25, 25, 128, False),
    (64, 197, 12, 12, 64, False),
    (16, 1569, 16, 16, 80, False),
    (1, 8192, 32, 8, 128, True),
]


def changed(**changes):
    return Request(**{**vars(SUPPORTED), **changes})


def scores(q, k, lengths, scale, mask):
    """[B, H, N, M] float32, and the keys for each query head."""
    k = jnp.repeat(k, q.shape[2] // k.shape[2], axis=2).astype(jnp.float32)
    s = jnp.einsum("bnhd,bmhd->bhnm", q.astype(jnp.float32), k) * scale
    keys = jnp.arange(k.shape[1])
    if "CAUSAL" in mask.name:
        s = jnp.where(keys <= jnp.arange(q.shape[1])[:, None], s, -jnp.inf)
    if "PADDING" in mask.name:
        s = jnp.where(keys < lengths[:, None, None, None], s, -jnp.inf)
    return s


def emulated_forward(q, k, v, *others, scale, mask_type, is_training, **_):
    s = scores(q, k, others[2], scale, mask_type)
    lse = jax.nn.logsumexp(s, axis=-1)
    values = jnp.repeat(v, q.shape[2] // v.shape[2], axis=2).astype(jnp.float32)
    out = jnp.einsum("bhnm,bmhd->bnhd", jnp.exp(s - lse[..., None]), values).astype(q.dtype)
    return [out, lse] if is_training else [out]


def emulated_backward(q, k, v, *others, scale, mask_type, **_):
    """From lse and out, as the kernel does: both must be in their places."""
    lengths, (lse, out, d_out) = others[2], others[-3:]
    group = q.shape[2] // k.shape[2]
    keys, values = (jnp.repeat(x, group, axis=2).astype(jnp.float32) for x in (k, v))
    d_out, out = d_out.astype(jnp.float32), out.astype(jnp.float32)
    weights = jnp.exp(scores(q, k, lengths, scale, mask_type) - lse[..., None])
    d_weights = jnp.einsum("bnhd,bmhd->bhnm", d_out, values)
    mean = jnp.einsum("bnhd,bnhd->bhn", d_out, out)
    d_scores = weights * (d_weights - mean[..., None]) * scale
    dq = jnp.einsum("bhnm,bmhd->bnhd", d_scores, keys)
    dk = jnp.einsum("bhnm,bnhd->bmhd", d_scores, q.astype(jnp.float32))
    dv = jnp.einsum("bhnm,bnhd->bmhd", weights, d_out)
    dk, dv = (x.reshape(*x.shape[:2], -1, group, x.shape[3]).sum(3) for x in (dk, dv))
    return [x.astype(q.dtype) for x in (dq, dk, dv)]


@pytest.fixture
def jax_cudnn(monkeypatch):
    """JAX's module, its operations emulated, on what passes for a GPU."""
    module = cudnn._jax_cudnn()
    for primitive, function in (
        (module._dot_product_attention_fwd_p, emulated_forward),
        (module._dot_product_attention_bwd_p, emulated_backward),
    ):
        mlir.register_lowering(
            primitive, mlir.lower_fun(function, multiple_results=True), platform="cpu"
        )
    monkeypatch.setattr(request_module, "current_platform", lambda: "gpu")
    monkeypatch.setattr(module, "check_cudnn_version", lambda: 91900)
    monkeypatch.delenv("INTERNVIDEO_ATTENTION", raising=False)
    return module


@pytest.fixture
def without_primitives(monkeypatch):
    monkeypatch.setattr(cudnn, "_has_primitives", lambda: False)


def both(qkv, **options):
    """Out and gradients in half precision, and of the reference in float32."""

    def run(implementation, qkv):
        def forward(*qkv):
            return attention(*qkv, implementation=implementation, **options)

        out, pull_back = jax.vjp(forward, *qkv)
        d_out = jnp.cos(jnp.arange(out.size)).reshape(out.shape)
        return out, *pull_back(d_out.astype(out.dtype))

    wide = tuple(x.astype(jnp.float32) for x in qkv)
    return jax.jit(lambda: run("cudnn", qkv))(), jax.jit(lambda: run("reference", wide))()


def check(found, expected):
    """In relative L2: out and gradients are rounded, and the gradients use the rounded out."""
    for a, b in zip(found, expected, strict=True):
        distance = jnp.linalg.norm(a.astype(jnp.float32) - b)
        assert distance <= 3 * 2**-8 * jnp.linalg.norm(b)


@pytest.mark.usefixtures("jax_cudnn")
@pytest.mark.parametrize("way", ["primitives", "public"])
@pytest.mark.parametrize(
    ("n", "m", "kv_heads", "causal"), [(7, 7, 4, False), (9, 12, 2, False), (7, 7, 2, True)]
)
def test_equals_the_reference(request, make_qkv, way, n, m, kv_heads, causal):
    if way == "public":
        request.getfixturevalue("without_primitives")
    qkv = make_qkv(2, n, m, 4, kv_heads, 8, dtype=jnp.bfloat16)
    found, expected = both(qkv, is_causal=causal, scale=0.4)
    assert {x.dtype for x in found} == {jnp.dtype("bfloat16")}
    check(found, expected)


@pytest.mark.usefixtures("jax_cudnn")
def test_keys_beyond_their_length_are_not_seen(make_qkv):
    qkv = make_qkv(3, 5, 7, 2, 2, 8, dtype=jnp.bfloat16)
    found, expected = both(qkv, kv_lengths=jnp.array([0, 3, 7]))
    assert all(np.isfinite(np.asarray(x, np.float32)).all() for x in found)
    assert not any(x[0].any() for x in found)
    check(found, expected)


def lowered(function, *shapes):
    return jax.jit(function).trace(*shapes).lower(lowering_platforms=("cuda",)).as_text()


def calls(text):
    return re.findall(r"__cudnn\$(\w+)", text)


@pytest.mark.usefixtures("jax_cudnn")
@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: "x".join(map(str, shape[:-1])))
def test_the_models_shapes_lower_for_cuda_without_padding(shape):
    b, n, heads, kv_heads, d, causal = shape
    q = jax.ShapeDtypeStruct((b, n, heads, d), jnp.bfloat16)
    k = jax.ShapeDtypeStruct((b, n, kv_heads, d), jnp.bfloat16)

    def forward(*qkv):
        return attention(*qkv, is_causal=causal)

    def gradients(q, k, v):
        return jax.vjp(forward, q, k, v)[1](q)

    forward_text, text = lowered(forward, q, k, k), lowered(gradients, q, k, k)
    assert calls(forward_text) == ["fmhaSoftmax"]
    assert calls(text) == ["fmhaSoftmax", "fmhaSoftmaxBackward"]
    for lowering in (forward_text, text):
        mask = "CAUSAL" if causal else "NO_MASK"
        assert set(re.findall(r"mask_type\\22: \\22(\w+)", lowering)) == {mask}
        assert "stablehlo.pad" not in lowering


@pytest.mark.usefixtures("jax_cudnn", "without_primitives")
def test_by_the_public_function_odd_lengths_are_padded_to_even_ones():
    q = jax.ShapeDtypeStruct((2, 2049, 16, 88), jnp.bfloat16)
    text = lowered(lambda *qkv: jax.vjp(attention, *qkv)[1](qkv[0]), q, q, q)
    assert calls(text) == ["fmhaSoftmax", "fmhaSoftmaxBackward"]
    assert set(re.findall(r"mask_type\\22: \\22(\w+)", text)) == {"PADDING"}
    assert "2x2050x16x88xbf16" in text
    even = jax.ShapeDtypeStruct((2, 2048, 16, 88), jnp.bfloat16)
    assert "stablehlo.pad" not in lowered(attention, even, even, even)


def test_another_version_of_jax_is_told_of(jax_cudnn, monkeypatch, caplog):
    cudnn._has_primitives.cache_clear()
    monkeypatch.delattr(jax_cudnn, "_dot_product_attention_bwd_p_wrapper")
    with caplog.at_level("WARNING", logger="internvideo_jax.kernels.attention"):
        assert not cudnn._has_primitives()
    assert "sequences of odd lengths are padded" in caplog.text
    assert "_dot_product_attention_bwd_p_wrapper" in caplog.text
    monkeypatch.undo()
    cudnn._has_primitives.cache_clear()
    assert cudnn._has_primitives()


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"platform": "tpu"}, "needs an NVIDIA GPU, found platform 'tpu'"),
        ({"bias_shape": (1, 1, 2049, 2049)}, "a bias"),
        ({"has_segment_ids": True}, "segment_ids"),
        ({"dropout_rate": 0.1}, "dropout"),
        ({"return_lse": True}, "return_lse"),
        ({"return_weights": True}, "return_weights"),
        ({"is_causal": True}, "whole sequences"),
        ({"is_causal": True, "starts_at_zero": True, "keys": 4096}, "whole sequences"),
        ({"is_causal": True, "starts_at_zero": True, "has_kv_lengths": True}, "kv_lengths"),
        ({"dtype": "float32"}, "bfloat16 and float16 alone, found float32"),
        ({"head_dim": 84}, "multiples of 8 up to 128, found 84"),
        ({"head_dim": 136}, "multiples of 8 up to 128, found 136"),
    ],
)
def test_refusals_are_named(changes, reason):
    assert reason in cudnn.supports(changed(**changes))


@pytest.mark.parametrize(
    ("capability", "kind", "reason"),
    [
        ("9.0", "NVIDIA H200", None),
        ("8.0", "NVIDIA A100", None),
        ("7.5", "Tesla T4", "8.0 (Ampere) or more, found 7.5 (Tesla T4)"),
        ("gfx942", "AMD Instinct MI300X", "needs an NVIDIA GPU, found AMD Instinct MI300X"),
    ],
)
def test_the_card_decides(monkeypatch, capability, kind, reason):
    monkeypatch.delenv("INTERNVIDEO_ATTENTION", raising=False)
    card = SimpleNamespace(compute_capability=capability, device_kind=kind)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(jax, "local_devices", lambda backend: [card])
    name, why = select_implementation(SUPPORTED)
    assert name == ("cudnn" if reason is None else "xla_half")
    assert (reason or "fused") in why


def test_a_gpu_takes_other_ways_for_what_cudnn_refuses(monkeypatch):
    monkeypatch.delenv("INTERNVIDEO_ATTENTION", raising=False)
    assert select_implementation(SUPPORTED).name == "cudnn"
    assert select_implementation(changed(queries=1)).name == "reference"
    assert select_implementation(changed(head_dim=84)).name == "xla_half"
    assert select_implementation(changed(head_dim=84, batch=8)).name == "xla_chunked"
    name, reason = select_implementation(changed(dtype="float32"))
    assert name == "xla_chunked"
    assert reason.startswith("the first that can serve; cudnn cannot serve: it takes bfloat16")
    name, reason = select_implementation(changed(has_segment_ids=True, queries=32, keys=32))
    assert name == "xla_half"
    assert reason == "short; cudnn cannot serve: it does not take segment_ids"
