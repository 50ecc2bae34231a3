"""Normalisation layers whose statistics are float32 whatever the compute dtype.

RMSNorm and LayerNorm save their low-precision input alone for the backward pass and compute the
float32 intermediates again, which costs no pass over memory.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from internvideo_jax.nn.partitioning import with_axes

_RMSNorm = nn.remat(nn.RMSNorm, prevent_cse=False)
_LayerNorm = nn.remat(nn.LayerNorm, prevent_cse=False)

# Weight of the new batch in running statistics (PyTorch's default and convention).
_MOMENTUM = 0.1


def rms_norm(
    epsilon: float, dtype: jnp.dtype, name: str, axes: tuple[str, ...] = ("norm",)
) -> nn.RMSNorm:
    """RMSNorm over the last `len(axes)` dimensions; `axes` are their logical names.

    The scale multiplies in float32 and the result is cast once, as the fused kernel does that the
    released InternVideo2 weights were trained with (upstream `flash_attn.ops.rms_norm`).
    """
    features = tuple(range(-len(axes), 0))
    return _RMSNorm(
        epsilon=epsilon,
        dtype=dtype,
        scale_init=with_axes(nn.initializers.ones, axes),
        reduction_axes=features,
        feature_axes=features,
        use_fast_variance=False,
        name=name,
    )


def layer_norm(epsilon: float, dtype: jnp.dtype, name: str) -> nn.LayerNorm:
    """LayerNorm over the last dimension with scale and bias; variance computed in two passes."""
    return _LayerNorm(
        epsilon=epsilon,
        dtype=dtype,
        scale_init=with_axes(nn.initializers.ones, ("norm",)),
        bias_init=with_axes(nn.initializers.zeros, ("norm",)),
        use_fast_variance=False,
        name=name,
    )


class BatchNorm(nn.Module):
    """Batch normalisation of the last dimension over all others, with PyTorch's running statistics.

    `flax.linen.BatchNorm` keeps the biased variance; PyTorch (and so every converted checkpoint)
    keeps the unbiased one. Collection `batch_stats` holds `mean` and `var`, both `[C]` float32.

    Attributes:
      epsilon: added to the variance.
      affine: whether there are `scale` and `bias` parameters `[C]`.
    """

    epsilon: float = 1e-5
    affine: bool = True
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, use_running_average: bool) -> jax.Array:
        """Normalises `x` `[..., C]`; updates the running statistics unless told to use them."""
        channels = x.shape[-1]
        mean = self.variable("batch_stats", "mean", jnp.zeros, (channels,), jnp.float32)
        var = self.variable("batch_stats", "var", jnp.ones, (channels,), jnp.float32)
        x = x.astype(jnp.float32)
        if use_running_average:
            batch_mean, batch_var = mean.value, var.value
        else:
            axes = tuple(range(x.ndim - 1))
            batch_mean, batch_var = x.mean(axes), x.var(axes)
            count = x.size // channels
            if not self.is_initializing():
                unbiased = batch_var * (count / max(count - 1, 1))
                mean.value += _MOMENTUM * (batch_mean - mean.value)
                var.value += _MOMENTUM * (unbiased - var.value)
        x = (x - batch_mean) * jax.lax.rsqrt(batch_var + self.epsilon)
        if self.affine:
            ones = with_axes(nn.initializers.ones, ("norm",))
            zeros = with_axes(nn.initializers.zeros, ("norm",))
            scale = self.param("scale", ones, (channels,), jnp.float32)
            x = x * scale + self.param("bias", zeros, (channels,), jnp.float32)
        return x.astype(self.dtype)


def l2_normalize(x: jax.Array) -> jax.Array:
    """Divides `x` `[..., D]` by its length; a zero vector stays zero, gradient too.

    The result is float32, or float64 where `x` is. Upstream divides without a guard, so a zero
    vector becomes NaN there.
    """
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    squared = jnp.sum(x * x, axis=-1, keepdims=True)
    is_zero = squared < jnp.finfo(x.dtype).tiny
    return x * jnp.where(is_zero, 0.0, jax.lax.rsqrt(jnp.where(is_zero, 1.0, squared)))
