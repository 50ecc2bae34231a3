"""The two-layer perceptron of the transformer blocks and probes."""

import functools
from collections.abc import Callable
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from internvideo_jax.nn.linear import default_kernel_init, dense
from internvideo_jax.nn.partitioning import Initializer

Activation = Literal["gelu_tanh", "gelu_erf", "gelu_quick", "silu", "relu"]

_ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "gelu_tanh": functools.partial(jax.nn.gelu, approximate=True),
    "gelu_erf": functools.partial(jax.nn.gelu, approximate=False),
    "gelu_quick": lambda x: x * jax.nn.sigmoid(1.702 * x),
    "silu": jax.nn.silu,
    "relu": jax.nn.relu,
}


@functools.partial(jax.checkpoint, prevent_cse=False, static_argnums=1)
def activate(x: jax.Array, activation: Activation) -> jax.Array:
    """An activation; GELU is exact (`gelu_erf`), by tanh, as upstream's fused MLP computes it, or
    by a sigmoid (`gelu_quick`), as CLIP does.

    The backward pass keeps its input alone, not the five arrays that its formula goes through.
    """
    return _ACTIVATIONS[activation](x)


class Mlp(nn.Module):
    """`fc2(gelu(fc1(x)))`, `[..., D] -> [..., out_dim]`."""

    hidden_dim: int
    out_dim: int
    activation: Activation = "gelu_erf"
    dtype: jnp.dtype = jnp.float32
    out_kernel_init: Initializer = default_kernel_init
    in_axis: str = "embed"
    out_axis: str = "embed"

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = dense(self.hidden_dim, (self.in_axis, "mlp"), self.dtype, "fc1")(x)
        x = activate(x, self.activation)
        return dense(
            self.out_dim,
            ("mlp", self.out_axis),
            self.dtype,
            "fc2",
            kernel_init=self.out_kernel_init,
        )(x)
