"""Linear layers' kernels as int8 values with a float32 scale per output channel.

In a variables tree a `kernel` in int8 has one of two scales beside it. With a `kernel_scale` it is
kept in int8 alone: `nn.linear.Dense` multiplies the two when it is called, one layer at a time
under a scan. With a `product_scale` the layer also rounds its inputs to int8 and sums the products
as integers, which TPUs do at twice the rate of bfloat16: the inputs of each token by a scale of
their own, or all by the `input_scale` that lies beside, where there is one (`nn.smoothing` makes
both).
"""

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

# A NumPy or JAX array.
Array = TypeVar("Array", np.ndarray, jax.Array)

SUFFIX = "_scale"
PRODUCT_SCALE = "product_scale"
INPUT_SCALE = "input_scale"
# What is measured of the inputs of linear layers, where this collection is mutable.
STATISTICS, LARGEST = "statistics", "largest"


class Kernel(nn.LogicallyPartitioned):
    """A linear layer's kernel with the logical names of its dimensions.

    Attributes:
      input_dims: the dimensions that a product sums over, counted from the end.
    """

    input_dims: tuple[int, ...] = struct.field(default=(), pytree_node=False)


def quantize(kernel: Array, input_dims: tuple[int, ...]) -> tuple[Array, Array]:
    """Rounds a kernel to 255 levels per output channel, symmetric about zero.

    Args:
      kernel: `[..., *inputs, *outputs]`, any float dtype, a NumPy or JAX array.
      input_dims: its input dimensions.

    Returns:
      int8 values of the kernel's shape, and float32 scales `[..., *outputs]`.
    """
    wide = kernel.astype(np.float32)
    largest = abs(wide).max(axis=input_dims, keepdims=True)
    # A channel of zeros has any scale but zero. No division: XLA's by a constant is not exact.
    scale = largest * np.float32(1 / 127) + (largest == 0).astype(np.float32)
    return (wide / scale).round().astype(np.int8), scale.squeeze(input_dims)


def dequantize(values: Array, scale: Array, input_dims: tuple[int, ...]) -> Array:
    """The float32 kernel that stands for what `quantize` returned."""
    dims = [dim % values.ndim for dim in input_dims]
    shape = [1 if i in dims else size for i, size in enumerate(values.shape)]
    return values.astype(np.float32) * scale.reshape(shape)


def product(
    x: jax.Array, kernel: jax.Array, product_scale: jax.Array, input_scale: jax.Array | None = None
) -> jax.Array:
    """`x` times a kernel, both as int8 values, their products summed in int32.

    Args:
      x: `[..., *inputs]`, any float dtype.
      kernel: int8 `[*inputs, *outputs]`.
      product_scale: of each output, float32 `[*outputs]`.
      input_scale: of all inputs, float32 []; larger ones than 127 times it are cut. None: of each
        token its own, by its largest input.

    Returns:
      float32 `[..., *outputs]`.
    """
    first_output = kernel.ndim - product_scale.ndim
    inputs = tuple(range(x.ndim - first_output, x.ndim))
    wide = x.astype(jnp.float32)
    if input_scale is None:
        scale = jnp.max(jnp.abs(wide), axis=inputs) * np.float32(1 / 127)
        scale = jnp.where(scale == 0, 1, scale)
        values = jnp.round(wide * jnp.expand_dims(1 / scale, inputs))
        scale = scale.reshape(scale.shape + (1,) * product_scale.ndim)
    else:
        scale = input_scale
        values = jnp.round(jnp.clip(wide * (1 / scale), -127, 127))
    sums = jax.lax.dot_general(
        values.astype(jnp.int8),
        kernel,
        ((inputs, tuple(range(first_output))), ((), ())),
        preferred_element_type=jnp.int32,
    )
    return sums.astype(jnp.float32) * (scale * product_scale)


def quantize_kernels(
    boxed: Mapping[str, Any], is_quantized: Callable[[str], bool] = lambda path: True
) -> dict[str, Any]:
    """A model's variables with some or all kernels of linear layers in int8, their scales beside.

    Args:
      boxed: path -> leaf with its axis names, as `module.init` gives them (flattened). Shapes
        become shapes under `jax.eval_shape`.
      is_quantized: whether the kernel of a path is.
    """
    result = {}
    for path, leaf in boxed.items():
        result[path] = leaf
        if isinstance(leaf, Kernel) and is_quantized(path):
            values, scale = quantize(leaf.value, leaf.input_dims)
            inputs = [dim % len(leaf.names) for dim in leaf.input_dims]
            names = tuple(name for i, name in enumerate(leaf.names) if i not in inputs)
            result[path] = leaf.replace(value=values)
            result[path + SUFFIX] = nn.LogicallyPartitioned(scale, names, rules=())
    return result
