"""Self-attention and attention pooling over the one attention function of `kernels.attention`."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from internvideo_jax.kernels.attention import attention
from internvideo_jax.nn.linear import default_kernel_init, dense
from internvideo_jax.nn.normalization import layer_norm, rms_norm
from internvideo_jax.nn.partitioning import Initializer
from internvideo_jax.parallel.sharding import Split, shard_map_logical, splits


def attend(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    *,
    heads: str = "heads",
    bias: jax.Array | None = None,
    segment_ids: tuple[jax.Array, jax.Array] | None = None,
    kv_lengths: jax.Array | None = None,
    query_offset: int | jax.Array = 0,
    is_causal: bool = False,
    dropout_rate: float = 0.0,
    dropout_rng: jax.Array | None = None,
    scale: float | None = None,
) -> jax.Array:
    """`attention` of q `[B, N, H, D]` over k, v `[B, M, Hkv, D]` under the current mesh and rules.

    Each device computes its part of the logical axes `batch`, `heads` and `tokens` with what it
    needs of the other operands, and drops what one device would drop. Tokens may be any number:
    they are padded to a multiple of their shards, and the padding is hidden. Keys and values are
    gathered over the shards of `tokens`.

    Args:
      q, k, v: queries, keys and values.
      heads: logical name of q's third axis; that of k and v is the same where Hkv is H, else
        "kv_heads". Where the shards of `heads` do not divide Hkv, k and v are whole on each, which
        takes the heads that belong to its queries.
      bias, segment_ids, kv_lengths, query_offset, is_causal, dropout_rate, dropout_rng, scale:
        those of `kernels.attention.attention`, of global shapes.

    Returns:
      `[B, N, H, D]`. For weights and log-sum-exps call `kernels.attention.attention`, which is left
      to the compiler's own partitioning.

    Raises:
      ValueError: operands do not fit; H or B do not divide by their shards (names the divisors).
    """
    num_queries, num_keys, num_heads, num_kv_heads = q.shape[1], k.shape[1], q.shape[2], k.shape[2]
    batch, tokens, head = splits(("batch", "tokens", heads))
    # Less than a token per shard, such as a pooler's one query, is not worth cutting.
    rows = tokens if num_queries >= tokens.parts else Split()
    keys = tokens if num_keys >= tokens.parts and rows.parts > 1 else Split()
    row_axis, key_axis = ("tokens" if split.parts > 1 else None for split in (rows, keys))
    kv_axis: str | None = heads if num_kv_heads == num_heads else "kv_heads"
    if splits((kv_axis,)) != (head,) or num_kv_heads % head.parts:
        kv_axis = None

    q, k, v = _pad(q, 1, rows), _pad(k, 1, keys), _pad(v, 1, keys)
    if k.shape[1] > num_keys:
        lengths = num_keys if kv_lengths is None else jnp.minimum(kv_lengths, num_keys)
        kv_lengths = jnp.broadcast_to(lengths, q.shape[:1])
    options: dict[str, Any] = {}
    axes: dict[str, Any] = {}
    if bias is not None:
        options["bias"] = _pad(_pad(bias, 2, rows), 3, keys)
        leading = zip(("batch", heads), bias.shape[:2], strict=True)
        axes["bias"] = (*(None if size == 1 else name for name, size in leading), row_axis, None)
    if segment_ids is not None:
        options["segment_ids"] = _pad(segment_ids[0], 1, rows), _pad(segment_ids[1], 1, keys)
        axes["segment_ids"] = ("batch", row_axis), ("batch", None)
    if kv_lengths is not None:
        options["kv_lengths"], axes["kv_lengths"] = kv_lengths, ("batch",)
    # A number stays one where it can: kernels may be made for sequences that begin at zero.
    is_number = isinstance(query_offset, int) and rows.parts == 1
    if is_causal and not is_number:
        options["query_offset"] = jnp.asarray(query_offset)
        axes["query_offset"] = ("batch",) if jnp.ndim(query_offset) else ()
    if dropout_rng is not None:
        options["dropout_rng"], axes["dropout_rng"] = dropout_rng, (None,) * dropout_rng.ndim

    def local(q: jax.Array, k: jax.Array, v: jax.Array, options: dict[str, Any]) -> jax.Array:
        first_example = batch.index() * q.shape[0]
        first_query = rows.index() * q.shape[1]
        first_head = head.index() * q.shape[2]
        if keys.parts > 1:
            k, v = (jax.lax.all_gather(x, keys.mesh_axes, axis=1, tiled=True) for x in (k, v))
        if kv_axis is None and head.parts > 1 and num_kv_heads > 1:
            group = num_heads // num_kv_heads
            of_queries = (first_head + jnp.arange(q.shape[2])) // group
            if group % q.shape[2] == 0:
                of_queries = of_queries[:1]
            k, v = (jnp.take(x, of_queries, axis=2, mode="clip") for x in (k, v))
        if is_causal:
            offset = query_offset if is_number else options["query_offset"] + first_query
            options = options | {"query_offset": offset}
        return attention(
            q,
            k,
            v,
            **options,
            scale=scale,
            is_causal=is_causal,
            dropout_rate=dropout_rate,
            dropout_origin=(first_example, first_head, first_query),
        )

    q_axes, kv_axes = ("batch", row_axis, heads, None), ("batch", key_axis, kv_axis, None)
    run = shard_map_logical(local, (q_axes, kv_axes, kv_axes, axes), q_axes)
    return run(q, k, v, options)[:, :num_queries]


def _pad(x: jax.Array, axis: int, split: Split) -> jax.Array:
    """Lengthens an axis by zeros to a multiple of its parts."""
    padding = -x.shape[axis] % split.parts
    return jnp.pad(x, [(0, padding if i == axis else 0) for i in range(x.ndim)]) if padding else x


def head_size(width: int, num_heads: int, option: str = "num_heads") -> int:
    """Channels of each head.

    Raises:
      ValueError: the heads do not divide the width; names the config's `option`.
    """
    if width % num_heads:
        raise ValueError(
            f"expected a width that the number of heads divides, found width {width} and"
            f" {num_heads} heads; change `{option}` or `width` in the model's config"
        )
    return width // num_heads


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
        qkv = dense(
            (3, self.num_heads, head_size(width, self.num_heads)),
            ("embed", "qkv", "heads", "head_dim"),
            self.dtype,
            "qkv",
            use_bias=self.qkv_bias,
        )(x)
        q, k, v = (x.squeeze(2) for x in jnp.split(qkv, 3, axis=2))
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


class CausalSelfAttention(SelfAttention):
    """Self-attention in which a token sees itself and what comes before it."""

    def attend(self, q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        return attend(q, k, v, is_causal=True)


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
        features = (self.num_heads, head_size(x.shape[-1], self.num_heads, "pooler_heads"))

        def project(name: str, inputs: jax.Array) -> jax.Array:
            inputs = layer_norm(1e-5, self.dtype, f"norm_{name}")(inputs)
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
