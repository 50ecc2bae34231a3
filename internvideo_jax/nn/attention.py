"""Self-attention and attention pooling over the one attention function of `kernels.attention`."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from internvideo_jax.kernels.attention import attention
from internvideo_jax.nn.linear import default_kernel_init, dense
from internvideo_jax.nn.normalization import layer_norm, rms_norm
from internvideo_jax.nn.partitioning import Initializer
from internvideo_jax.parallel.sharding import shard_map_logical


def attend(
    q: jax.Array, k: jax.Array, v: jax.Array, *, heads: str = "heads", **options: Any
) -> jax.Array:
    """`attention` of `[B, N, H, Dh]` arrays, run per shard of the logical axes `batch` and `heads`.

    `heads` is the logical name of the third axis; `options` are those of `attention`.
    """
    axes = ("batch", None, heads, None)

    def local(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        return attention(q, k, v, **options)

    return shard_map_logical(local, (axes, axes, axes), axes)(q, k, v)


class SelfAttention(nn.Module):
    """Multi-head self-attention `[B, N, D] -> [B, N, D]`, optionally with normalised q and k.

    Attributes:
      num_heads: H; must divide D.
      qkv_bias: whether the fused projection has a bias.
      qk_norm: RMS-normalise q and k over the full width D before the heads are used.
      out_kernel_init: initialiser of the output projection.
    """

    num_heads: int
    qkv_bias: bool = False
    qk_norm: bool = True
    norm_epsilon: float = 1e-6
    dtype: jnp.dtype = jnp.float32
    out_kernel_init: Initializer = default_kernel_init

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        width = x.shape[-1]
        if width % self.num_heads:
            raise ValueError(
                f"expected a width that the number of heads divides, found width {width} and"
                f" {self.num_heads} heads; change `num_heads` or `width` in the model's config"
            )
        qkv = dense(
            (3, self.num_heads, width // self.num_heads),
            ("embed", "qkv", "heads", "head_dim"),
            self.dtype,
            "qkv",
            use_bias=self.qkv_bias,
        )(x)
        q, k, v = (qkv[:, :, i] for i in range(3))
        if self.qk_norm:
            head_axes = ("heads", "head_dim")
            q = rms_norm(self.norm_epsilon, self.dtype, "q_norm", head_axes)(q)
            k = rms_norm(self.norm_epsilon, self.dtype, "k_norm", head_axes)(k)
        return dense(
            width,
            ("heads", "head_dim", "embed"),
            self.dtype,
            "proj",
            axis=(-2, -1),
            kernel_init=self.out_kernel_init,
        )(self.attend(q, k, v))

    def attend(self, q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        """Attention over tokens `[B, N, H, Dh]`."""
        return attend(q, k, v)


class AttentionPooler(nn.Module):
    """Pools tokens `[B, N, D]` to `[B, out_dim]` with their mean as the query.

    Source: `AttentionPoolingBlock` (`clip_projector`) of upstream `models/internvideo2.py`; no
    residual, no output norm.
    """

    num_heads: int
    out_dim: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(
        self, x: jax.Array, return_weights: bool = False
    ) -> tuple[jax.Array, jax.Array | None]:
        """Returns the pooled vector and, if asked, the head-averaged attention `[B, N]` float32."""
        width = x.shape[-1]
        if width % self.num_heads:
            raise ValueError(
                f"expected a width that the pooler's heads divide, found width {width} and"
                f" {self.num_heads} heads; change `pooler_heads` in the model's config"
            )

        def project(name: str, inputs: jax.Array) -> jax.Array:
            inputs = layer_norm(1e-5, self.dtype, f"norm_{name}")(inputs)
            features = (self.num_heads, width // self.num_heads)
            return dense(features, ("embed", "pooler_heads", "head_dim"), self.dtype, name)(inputs)

        mean = jnp.mean(x, axis=1, keepdims=True, dtype=jnp.float32).astype(self.dtype)
        q, k, v = project("q", mean), project("k", x), project("v", x)
        weights = None
        if return_weights:
            # The weights leave the op, so this call is left to the compiler's own partitioning.
            out, weights = attention(q, k, v, return_weights=True)
            weights = weights.mean(axis=1)[:, 0]
        else:
            out = attend(q, k, v, heads="pooler_heads")
        out = dense(
            self.out_dim, ("pooler_heads", "head_dim", "pooled"), self.dtype, "proj", axis=(-2, -1)
        )(out)
        return out[:, 0], weights
