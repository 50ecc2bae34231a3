"""Linear layers with logical axis names."""

from collections.abc import Sequence
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from internvideo_jax.nn import int8
from internvideo_jax.nn.partitioning import Initializer, with_axes

Dtype = Literal["float32", "bfloat16", "float16"]

# Every linear layer of the family starts from N(0, 0.02) truncated at an absolute 2, which cuts
# nothing at 100 standard deviations (upstream `_init_weights`).
default_kernel_init = nn.initializers.normal(0.02)


def torch_uniform(inputs: int) -> Initializer:
    """How torch starts the kernel of a linear layer of so many inputs, unless told otherwise."""
    bound = inputs**-0.5

    def init(key: jax.Array, shape: tuple[int, ...], dtype: jnp.dtype) -> jax.Array:
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init


class Dense(nn.DenseGeneral):
    """A linear map whose kernel may be int8 values with a scale beside them; see `nn.int8`.

    Where the collection `int8.STATISTICS` is mutable, a call leaves the largest magnitude of each
    input there, float32 `[*inputs]`.
    """

    # Not wrapped by Flax, for the scopes of a plain layer to be named once.
    @nn.nowrap
    def __call__(self, inputs: jax.Array) -> jax.Array:
        if self.is_mutable_collection(int8.STATISTICS) and not self.is_initializing():
            num_inputs = 1 if isinstance(self.axis, int) else len(self.axis)
            leading = tuple(range(inputs.ndim - num_inputs))
            largest = jnp.max(jnp.abs(inputs.astype(jnp.float32)), axis=leading)
            self.put_variable(int8.STATISTICS, int8.LARGEST, largest)
        if self.has_variable("params", int8.PRODUCT_SCALE):
            return self.multiply_int8(inputs)
        output: jax.Array = super().__call__(inputs)
        return output

    def multiply_int8(self, inputs: jax.Array) -> jax.Array:
        """The map where a `product_scale` lies beside the kernel."""
        kernel: jax.Array = self.get_variable("params", "kernel")
        scale: jax.Array = self.get_variable("params", int8.PRODUCT_SCALE)
        input_scale: jax.Array | None = self.get_variable("params", int8.INPUT_SCALE)
        bias: jax.Array | None = self.get_variable("params", "bias")
        output = int8.product(inputs, kernel, scale, input_scale)
        return (output if bias is None else output + bias).astype(self.dtype)

    @nn.nowrap
    def param(self, name: str, *args: Any, **kwargs: Any) -> Any:
        value = super().param(name, *args, **kwargs)
        if self.has_variable("params", name + int8.SUFFIX):
            scale: jax.Array = self.get_variable("params", name + int8.SUFFIX)
            value = int8.dequantize(value, scale, tuple(range(value.ndim - scale.ndim)))
        return value


def dense(
    features: int | Sequence[int],
    kernel_axes: tuple[str | None, ...],
    dtype: jnp.dtype,
    name: str | None,
    *,
    axis: int | Sequence[int] = -1,
    use_bias: bool = True,
    kernel_init: Initializer = default_kernel_init,
) -> Dense:
    """A linear map from the dimensions `axis` to `features`, its kernel named by `kernel_axes`.

    `kernel_axes` lists the logical names of input then output dimensions; the bias takes the names
    of the output dimensions, `embed` becoming `norm` because sharding so small a vector only costs
    a collective.
    """
    n_out = 1 if isinstance(features, int) else len(features)
    bias_axes = tuple("norm" if a == "embed" else a for a in kernel_axes[-n_out:])

    def boxed_kernel(*args: Any) -> int8.Kernel:
        input_dims = tuple(range(-len(kernel_axes), -n_out))
        return int8.Kernel(kernel_init(*args), kernel_axes, rules=(), input_dims=input_dims)

    return Dense(
        features=features,
        axis=axis,
        use_bias=use_bias,
        dtype=dtype,
        kernel_init=boxed_kernel,
        bias_init=with_axes(nn.initializers.zeros, bias_axes),
        name=name,
    )
