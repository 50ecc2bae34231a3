import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from internvideo_jax.models import abstract_variables
from internvideo_jax.models.video_vit import VideoViT
from internvideo_jax.nn import int8
from internvideo_jax.nn.blocks import PreNormBlock
from internvideo_jax.nn.smoothing import (
    PRODUCTS,
    STATIC,
    quantize_block,
    quantize_blocks,
    smooth_block,
    unit_inputs,
)
from internvideo_jax.nn.stack import Layer
from tests.small_models import ENCODER

CONFIG = dataclasses.replace(ENCODER, qkv_bias=True, layer_scale_init=None)
LAYER = Layer(jnp.int32(0), None, None)


def run(params, x, **options):
    """The block, from parameters by path."""
    nested = traverse_util.unflatten_dict(params, sep="/")
    return PreNormBlock(CONFIG, True).apply({"params": nested}, x, LAYER, **options)


@pytest.fixture(scope="module")
def block():
    """A block with channels 30 times larger than others, its inputs, and their largest values."""
    x = jax.random.normal(jax.random.key(0), (2, 9, CONFIG.width))
    init = PreNormBlock(CONFIG, True).init
    shapes = nn.unbox(jax.eval_shape(init, jax.random.key(1), x, LAYER)["params"])
    rng, params = np.random.default_rng(0), {}
    for path, leaf in traverse_util.flatten_dict(shapes, sep="/").items():
        inputs = leaf.shape[0] if "proj" not in path else CONFIG.width
        values = rng.normal(0, inputs**-0.5, leaf.shape)
        params[path] = jnp.asarray(np.ones(leaf.shape) if "scale" in path else values, jnp.float32)
    loud = np.ones(CONFIG.width, np.float32)
    loud[[3, 17]] = 30
    for norm, kernel in (("norm1/scale", "attn/qkv/kernel"), ("norm2/scale", "mlp/fc1/kernel")):
        params[norm] = params[norm] * loud
        params[kernel] = params[kernel] / loud.reshape(-1, *[1] * (params[kernel].ndim - 1))
    _, found = run(params, x, mutable=[int8.STATISTICS])
    flat = traverse_util.flatten_dict(found[int8.STATISTICS], sep="/")
    largest = {product: flat[f"{product}/{int8.LARGEST}"] for product in PRODUCTS}
    return params, x, largest


def test_the_largest_inputs_are_those_of_the_layers(block):
    params, x, largest = block
    root = jnp.sqrt(jnp.square(x).mean(-1, keepdims=True) + 1e-6)
    wanted = jnp.abs(x / root * params["norm1/scale"]).max((0, 1))
    np.testing.assert_allclose(largest["attn/qkv"], wanted, rtol=1e-5)
    heads = CONFIG.num_heads, CONFIG.width // CONFIG.num_heads
    shapes = {name: x.shape for name, x in largest.items()}
    assert shapes["attn/proj"] == heads
    assert shapes["mlp/fc2"] == (CONFIG.mlp_dim,)


@pytest.mark.parametrize("products", [PRODUCTS, ("attn/proj",), ("mlp/fc1", "mlp/fc2")])
def test_smoothing_changes_channels_and_not_what_a_block_computes(block, products):
    params, x, largest = block
    smoothed, left = smooth_block(params, largest, products)
    np.testing.assert_allclose(run(smoothed, x), run(params, x), atol=2e-5)
    _, found = run(smoothed, x, mutable=[int8.STATISTICS])
    flat = traverse_util.flatten_dict(found[int8.STATISTICS], sep="/")
    for product in products:
        np.testing.assert_allclose(flat[f"{product}/{int8.LARGEST}"], left[product], rtol=1e-4)
    if "mlp/fc1" in products:
        before, after = (x["mlp/fc1"].max() / jnp.median(x["mlp/fc1"]) for x in (largest, left))
        assert before > 20
        assert after < before / 3


def test_channels_that_are_never_used_keep_their_scale(block):
    params, _, largest = block
    unused = {name: x.at[(0,) * x.ndim].set(0) for name, x in largest.items()}
    smoothed, left = smooth_block(params, unused)
    assert all(bool(jnp.isfinite(x).all()) for x in (*smoothed.values(), *left.values()))
    assert smoothed["norm1/scale"][0] == params["norm1/scale"][0]


def test_int8_needs_the_smoothing(block):
    params, x, largest = block
    wanted = run(params, x)
    error = jnp.abs(run(quantize_block(params, largest), x) - wanted).max() / jnp.abs(wanted).max()
    assert error < 0.02
    rough = dict(params)
    for product in PRODUCTS:
        inputs = tuple(range(largest[product].ndim))
        kernel = params[f"{product}/kernel"]
        rough[f"{product}/kernel"], scale = int8.quantize(kernel, inputs)
        rough[f"{product}/{int8.PRODUCT_SCALE}"] = scale
    unsmoothed = jnp.abs(run(rough, x) - wanted).max() / jnp.abs(wanted).max()
    assert unsmoothed > 2 * error


def test_a_stack_is_quantised_with_the_names_of_its_axes():
    flat = traverse_util.flatten_dict(abstract_variables(VideoViT(CONFIG), boxed=True), sep="/")
    prefix = "params/blocks/"
    blocks = {p.removeprefix(prefix): leaf for p, leaf in flat.items() if p.startswith(prefix)}
    products = ("attn/qkv", "attn/proj", "mlp/fc2")
    made = jax.eval_shape(lambda b: quantize_blocks(b, unit_inputs(b), products), blocks)
    kernels = {p: x.value.dtype for p, x in made.items() if p.endswith("kernel")}
    assert {p for p, dtype in kernels.items() if dtype == jnp.int8} == {
        f"{product}/kernel" for product in products
    }
    scale = made["attn/qkv/product_scale"]
    assert (scale.value.shape, scale.names) == (
        (2, 3, 2, 16),
        ("layers", "qkv", "heads", "head_dim"),
    )
    assert made["attn/proj/product_scale"].names == ("layers", "norm")
    static = {p.removesuffix("/input_scale"): x for p, x in made.items() if "input_scale" in p}
    assert set(static) == set(STATIC)
    assert {(x.value.shape, x.names) for x in static.values()} == {((2,), ("layers",))}
