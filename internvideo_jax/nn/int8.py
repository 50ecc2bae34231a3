"""Linear layers' kernels kept as int8 values with a float32 scale per output channel.

In a variables tree a `kernel` in int8 has a `kernel_scale` beside it; `nn.linear.Dense` multiplies
the two when it is called, one layer at a time under a scan.
"""

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import struct, traverse_util

# A NumPy or JAX array.
Array = TypeVar("Array", np.ndarray, jax.Array)

SUFFIX = "_scale"


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


def quantized_shapes(
    boxed: Mapping[str, Any], is_quantized: Callable[[str], bool] = lambda name: True
) -> dict[str, Any]:
    """Shapes and axis names of a model's variables with some or all kernels of linear layers int8.

    Args:
      boxed: path -> leaf of the tree that `models.abstract_variables(module, boxed=True)` gives.
      is_quantized: whether the kernel of a path is.
    """
    shapes = {}
    for name, leaf in boxed.items():
        shapes[name] = leaf
        if isinstance(leaf, Kernel) and is_quantized(name):
            shape = leaf.value.shape
            outputs = [i for i in range(len(shape)) if i - len(shape) not in leaf.input_dims]
            shapes[name] = leaf.replace(value=jax.ShapeDtypeStruct(shape, jnp.int8))
            shapes[name + SUFFIX] = nn.LogicallyPartitioned(
                jax.ShapeDtypeStruct(tuple(shape[i] for i in outputs), jnp.float32),
                tuple(leaf.names[i] for i in outputs),
            )
    return shapes


def quantize_kernels(variables: Mapping[str, Any], boxed: Mapping[str, Any]) -> dict[str, Any]:
    """A variables tree, or a part of one, with all kernels of linear layers in int8.

    Args:
      variables: unboxed variables.
      boxed: the tree that `models.abstract_variables(module, boxed=True)` gives, or the same part.
    """
    flat = traverse_util.flatten_dict(dict(variables), sep="/")
    for name, leaf in traverse_util.flatten_dict(dict(boxed), sep="/").items():
        if isinstance(leaf, Kernel) and name in flat and name + SUFFIX not in flat:
            flat[name], flat[name + SUFFIX] = quantize(flat[name], leaf.input_dims)
    return traverse_util.unflatten_dict(flat, sep="/")
