"""Bodies of the transformer stacks: one class for each order of norms, branches and additions."""

import functools
from collections.abc import Sequence
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from internvideo_jax.nn.attention import CausalSelfAttention, SelfAttention
from internvideo_jax.nn.linear import default_kernel_init
from internvideo_jax.nn.mlp import Mlp
from internvideo_jax.nn.normalization import layer_norm, rms_norm
from internvideo_jax.nn.partitioning import with_axes
from internvideo_jax.nn.stack import Layer


class LayerScale(nn.Module):
    """Multiplies by a per-channel `gamma` in float32 and casts back."""

    init_value: float

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        init = with_axes(nn.initializers.constant(self.init_value), ("norm",))
        gamma = self.param("gamma", init, (x.shape[-1],), jnp.float32)
        return _scale(x, gamma)


# The backward pass keeps the low-precision input alone.
@functools.partial(jax.checkpoint, prevent_cse=False)
def _scale(x: jax.Array, gamma: jax.Array) -> jax.Array:
    return (x.astype(jnp.float32) * gamma).astype(x.dtype)


def drop_path(x: jax.Array, rate: jax.Array, rng: jax.Array) -> jax.Array:
    """Zeroes whole samples of a branch `[B, ...]` with probability `rate`, rescaling the others."""
    shape = (x.shape[0],) + (1,) * (x.ndim - 1)
    keep = 1.0 - rate
    kept = jax.random.bernoulli(rng, keep, shape)
    return jnp.where(kept, x / keep.astype(x.dtype), jnp.zeros_like(x))


class PreNormBlock(nn.Module):
    """A ViT's layer, `x + ls1(attn(norm1(x)))` then `+ ls2(mlp(norm2(.)))`.

    Attributes:
      config: has `num_heads`, `mlp_dim`, `norm` ("rmsnorm" or "layernorm"), `norm_epsilon` (also of
        the q/k norms), `activation`, `qkv_bias`, `qk_norm`, `layer_scale_init` (None leaves layer
        scale out) and `dtype`; see `models.video_vit.VideoViTConfig`.
      deterministic: unused here; stochastic depth comes with the layer.
    """

    config: Any
    deterministic: bool

    attention_cls: ClassVar[type[SelfAttention]] = SelfAttention

    @nn.compact
    def __call__(self, x: jax.Array, layer: Layer, shared: None = None) -> jax.Array:
        c = self.config
        dtype = jnp.dtype(c.dtype)
        norm = rms_norm if c.norm == "rmsnorm" else layer_norm

        def out_kernel_init(key: jax.Array, shape: Sequence[int], dtype: Any) -> jax.Array:
            # Deeper residual branches start smaller (upstream `fix_init_weight`).
            return default_kernel_init(key, shape, dtype) / jnp.sqrt(2.0 * (layer.index + 1))

        def add_branch(x: jax.Array, branch: jax.Array, scale_name: str) -> jax.Array:
            if c.layer_scale_init is not None:
                branch = LayerScale(c.layer_scale_init, name=scale_name)(branch)
            if layer.drop_path_rate is not None:
                branch = drop_path(branch, layer.drop_path_rate, self.make_rng("dropout"))
            return x + branch

        attn = self.attention_cls(
            num_heads=c.num_heads,
            qkv_bias=c.qkv_bias,
            qk_norm=c.qk_norm,
            norm_epsilon=c.norm_epsilon,
            dtype=dtype,
            out_kernel_init=out_kernel_init,
            name="attn",
        )
        mlp = Mlp(c.mlp_dim, x.shape[-1], c.activation, dtype, out_kernel_init, name="mlp")
        x = add_branch(x, attn(norm(c.norm_epsilon, dtype, "norm1")(x)), "ls1")
        return add_branch(x, mlp(norm(c.norm_epsilon, dtype, "norm2")(x)), "ls2")


class CausalPreNormBlock(PreNormBlock):
    """The same layer of texts that are read from left to right."""

    attention_cls = CausalSelfAttention
