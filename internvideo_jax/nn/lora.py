"""Low-rank adapters beside the kernels of linear layers."""

import dataclasses
import math
from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from internvideo_jax.config import CheckedConfig, Factor, Rate, Width
from internvideo_jax.nn.linear import dense
from internvideo_jax.nn.partitioning import with_axes


@dataclasses.dataclass(frozen=True)
class LoRAConfig(CheckedConfig):
    """Which layers of a tower have adapters, and how.

    Attributes:
      rank: r, the inner size of the adapters.
      alpha: their product is scaled by `alpha / rank`.
      dropout_rate: dropout of the adapters' input in training.
      targets: names of the linear layers that have one.
    """

    rank: Width
    alpha: Factor
    dropout_rate: Rate = 0.0
    targets: tuple[str, ...] = ("q", "v")

    @property
    def scale(self) -> float:
        """Factor on the product of an adapter's two matrices."""
        return self.alpha / self.rank


class LoRADense(nn.Module):
    """A linear layer `[..., in] -> [..., out]` plus `scale * (x @ lora_a) @ lora_b`.

    Its parameters are those of `dense` and, beside the kernel, `lora_a` `[in, r]` and `lora_b`
    `[r, out]`, where `in` and `out` may each be several dimensions.
    """

    features: int | Sequence[int]
    kernel_axes: tuple[str, ...]
    config: LoRAConfig
    deterministic: bool
    dtype: jnp.dtype = jnp.float32
    axis: int | Sequence[int] = -1
    use_bias: bool = True

    def setup(self) -> None:
        self.base = dense(
            self.features,
            self.kernel_axes,
            self.dtype,
            None,
            axis=self.axis,
            use_bias=self.use_bias,
        )
        nn.share_scope(self, self.base)

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        features = (self.features,) if isinstance(self.features, int) else tuple(self.features)
        num_inputs = len(self.kernel_axes) - len(features)
        inputs = x.shape[x.ndim - num_inputs :]
        input_axes, output_axes = self.kernel_axes[:num_inputs], self.kernel_axes[num_inputs:]
        # As peft starts them: the product is zero.
        bound = math.prod(inputs) ** -0.5

        def uniform(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
            return jax.random.uniform(key, shape, jnp.float32, -bound, bound)

        rank = self.config.rank
        a = self.param("lora_a", with_axes(uniform, (*input_axes, None)), (*inputs, rank))
        zeros = with_axes(nn.initializers.zeros, (None, *output_axes))
        b = self.param("lora_b", zeros, (rank, *features))
        adapted = nn.Dropout(self.config.dropout_rate)(x, deterministic=self.deterministic)
        adapted = jnp.tensordot(adapted.astype(self.dtype), a.astype(self.dtype), num_inputs)
        adapted = jnp.tensordot(adapted, b.astype(self.dtype), 1)
        return self.base(x) + adapted * jnp.asarray(self.config.scale, self.dtype)


def adaptable_dense(
    features: int | Sequence[int],
    kernel_axes: tuple[str, ...],
    dtype: jnp.dtype,
    name: str,
    lora: LoRAConfig | None,
    *,
    deterministic: bool,
    axis: int | Sequence[int] = -1,
    use_bias: bool = True,
) -> nn.Module:
    """`dense`, with an adapter where `lora` names it among its targets."""
    if lora is None or name not in lora.targets:
        return dense(features, kernel_axes, dtype, name, axis=axis, use_bias=use_bias)
    return LoRADense(features, kernel_axes, lora, deterministic, dtype, axis, use_bias, name=name)
