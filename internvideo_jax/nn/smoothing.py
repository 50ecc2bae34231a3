"""Pre-norm blocks whose linear layers multiply int8 values: smoothed by measurements, quantised.

A few channels of a large transformer's activations are tens of times larger than the others, and
would leave these few of the 255 levels. Kernels have no such channels, so a part of the inputs'
range is moved to them: channel j of a layer's inputs is divided by s_j = sqrt(largest input of j /
largest weight of j), its row of the kernel multiplied by it. What divides is folded into what
computes the inputs: a norm's scale before `qkv` and `fc1`, the columns of v before `proj`. Nothing
linear comes before `fc2`.

Norms and GELU give each token a range of its own, so `qkv` and `fc1` find a scale per token, in a
pass over their inputs. `proj` and `fc2` save that pass: all their inputs have one scale, measured.

Source: Xiao et al., "SmoothQuant", 2023, equation 4 with a migration strength of 0.5.
"""

from collections.abc import Collection, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from internvideo_jax.nn import int8

# The linear layers of `nn.blocks.PreNormBlock`, in their order.
PRODUCTS = ("attn/qkv", "attn/proj", "mlp/fc1", "mlp/fc2")
# Those whose inputs have one scale.
STATIC = ("attn/proj", "mlp/fc2")
_NORMS = {"attn/qkv": "norm1", "mlp/fc1": "norm2"}

Arrays = Mapping[str, jax.Array]


def smooth_block(
    params: Arrays, largest: Arrays, products: Collection[str] = PRODUCTS
) -> tuple[dict[str, jax.Array], dict[str, jax.Array]]:
    """Evens the channels that a block's linear layers multiply; it computes what it did.

    Args:
      params: of one block, by path ("attn/qkv/kernel").
      largest: the largest magnitude of each input of the linear layers, by path, `[*inputs]`.
      products: which layers are smoothed.

    Returns:
      The parameters, changed ones in float32, and `largest` of these.
    """
    changed = dict(params)
    left = dict(largest)

    def scale(path: str, factor: jax.Array) -> None:
        changed[path] = changed[path].astype(jnp.float32) * factor

    def smooth(product: str) -> jax.Array:
        """Multiplies the rows of the kernel; returns what to divide the inputs by."""
        kernel, inputs = changed[f"{product}/kernel"], largest[product]
        outputs = tuple(range(inputs.ndim, kernel.ndim))
        weights = jnp.max(jnp.abs(kernel.astype(jnp.float32)), axis=outputs)
        is_dead = (inputs == 0) | (weights == 0)
        factor = jnp.where(is_dead, 1, jnp.sqrt(inputs / jnp.where(is_dead, 1, weights)))
        scale(f"{product}/kernel", jnp.expand_dims(factor, outputs))
        left[product] = inputs / factor
        return factor

    if "attn/proj" in products:
        factor = smooth("attn/proj")
        # q and k keep their columns.
        columns = jnp.stack([jnp.ones_like(factor), jnp.ones_like(factor), 1 / factor])
        for name in ("kernel", "bias"):
            if f"attn/qkv/{name}" in changed:
                scale(f"attn/qkv/{name}", columns)
    for product, norm in _NORMS.items():
        if product in products:
            scale(f"{norm}/scale", 1 / smooth(product))
    return changed, left


def quantize_block(
    params: Arrays, largest: Arrays, products: Collection[str] = PRODUCTS
) -> dict[str, jax.Array]:
    """A block's parameters with some linear layers for products of int8 values, as `nn.int8` says.

    Arguments are those of `smooth_block`. Kernels of the other layers keep their dtype.
    """
    smoothed, left = smooth_block(params, largest, products)
    result = {}
    for path, value in smoothed.items():
        product = path.removesuffix("/kernel")
        if product == path or product not in products:
            result[path] = value.astype(params[path].dtype)
            continue
        inputs = tuple(range(left[product].ndim))
        result[path], result[f"{product}/{int8.PRODUCT_SCALE}"] = int8.quantize(value, inputs)
        if product in STATIC:
            span = jnp.max(left[product])
            scale = jnp.where(span == 0, 1, span) * np.float32(1 / 127)
            result[f"{product}/{int8.INPUT_SCALE}"] = scale
    return result


def quantize_blocks(
    boxed: Mapping[str, Any], largest: Arrays, products: Collection[str] = PRODUCTS
) -> dict[str, Any]:
    """`quantize_block` of all blocks of a stack, one after the other.

    Args:
      boxed: path -> leaf with its axis names, as a stack's parameters are, `[layers, ...]`.
      largest: by product, `[layers, *inputs]`.
      products: which layers multiply int8 values.
    """
    values = {path: leaf.value for path, leaf in boxed.items()}
    layers = values, dict(largest)
    made = jax.lax.map(lambda layer: quantize_block(layer[0], layer[1], products), layers)
    return {path: _boxed(path, value, boxed) for path, value in made.items()}


def unit_inputs(boxed: Mapping[str, Any]) -> dict[str, jax.Array]:
    """A `largest` of ones for `quantize_blocks`, where shapes are all that matters."""

    def ones(kernel: int8.Kernel) -> jax.Array:
        return jnp.ones(kernel.value.shape[: 1 + len(kernel.input_dims)], jnp.float32)

    return {product: ones(boxed[f"{product}/kernel"]) for product in PRODUCTS}


def _boxed(path: str, value: jax.Array, boxed: Mapping[str, Any]) -> Any:
    if path in boxed:
        return boxed[path].replace(value=value)
    product, _, name = path.rpartition("/")
    kernel = boxed[f"{product}/kernel"]
    # Of the layers, and of the outputs as a bias has them.
    outputs = kernel.names[1 + len(kernel.input_dims) :] if name == int8.PRODUCT_SCALE else ()
    names = kernel.names[:1] + tuple("norm" if axis == "embed" else axis for axis in outputs)
    return nn.LogicallyPartitioned(value, names, rules=())
