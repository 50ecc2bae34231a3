"""The kernels through the TPU compiler; `test_pallas_tpu.py` runs these in their own process."""

import functools
import re

import jax
import jax.numpy as jnp
import pytest

from internvideo_jax.kernels.attention import attention
from internvideo_jax.kernels.attention.pallas_tpu import table
from internvideo_jax.parallel import aot

TOPOLOGIES = {"v5e": "v5e:1x1", "v5p": "v5p:2x2x1", "v6e": "v6e:1x1", "tpu7x": "tpu7x:2x2x1"}
# Causal: tokens, heads, key-value heads, channels.
CAUSAL = [(417, 4, 4, 88), (2049, 2, 2, 64), (2048, 8, 2, 128), (4096, 4, 1, 128)]
# Tokens, heads, channels.
CLASSES = {
    "short": [(417, 16, 88), (197, 12, 64)],
    "frame": [(257, 5, 128)],
    "narrow": [(2049, 2, 88), (1569, 2, 64)],
    "wide": [(4097, 2, 128), (2048, 2, 128)],
}


def compiled(fn, generation, *shapes):
    """The optimised program of a function of bfloat16 arrays, for one device."""
    device = aot.topology(TOPOLOGIES[generation]).devices[0]
    mesh = jax.sharding.Mesh([device], ("data",))
    whole = jax.NamedSharding(mesh, jax.sharding.PartitionSpec())
    arguments = [jax.ShapeDtypeStruct(x, jnp.bfloat16, sharding=whole) for x in shapes]
    with jax.set_mesh(mesh):
        return jax.jit(fn).lower(*arguments).compile()


def gradients(q, k, v, is_causal=False):
    def total(*qkv):
        out = attention(*qkv, is_causal=is_causal, implementation="pallas_tpu")
        return jnp.sum(out.astype(jnp.float32) ** 2)

    return jax.grad(total, (0, 1, 2))(q, k, v)


@pytest.mark.parametrize("name", CLASSES)
@pytest.mark.parametrize("generation", TOPOLOGIES)
def test_every_class_compiles(generation, name):
    for tokens, heads, head_dim in CLASSES[name]:
        assert table.shape_class(tokens, head_dim) == name
        compiled(gradients, generation, *[(1, tokens, heads, head_dim)] * 3)


@pytest.mark.parametrize("shape", CAUSAL)
@pytest.mark.parametrize("generation", ["v5e", "v6e"])
def test_causal_attention_compiles(generation, shape):
    tokens, heads, kv_heads, head_dim = shape
    q, kv = ((1, tokens, n, head_dim) for n in (heads, kv_heads))
    causal = functools.partial(gradients, is_causal=True)
    program = compiled(causal, generation, q, kv, kv).as_text()
    assert "causal_attention_forward" in program
    assert "causal_attention_backward" in program


@pytest.mark.parametrize("generation", ["v5e", "v6e"])
def test_projections_write_what_the_kernel_reads(generation):
    """Forward: nothing as large as the queries is copied between the products and the kernel."""
    b, n, h, d = 2, 2048, 4, 88

    def layer(x, w_qkv, w_out):
        q, k, v = (jnp.einsum("bnc,chd->bnhd", x, w) for w in w_qkv)
        out = attention(q, k, v, implementation="pallas_tpu")
        return x + jnp.einsum("bnhd,hdc->bnc", out, w_out)

    program = compiled(layer, generation, (b, n, h * d), (3, h * d, h, d), (h, d, h * d)).as_text()
    assert "attention_forward" in program
    copies = re.findall(rf"= bf16\[[\d,]*{n}[\d,]*\]\S* (?:copy|transpose)\(.*", program)
    assert not copies, "\n".join(copies)
