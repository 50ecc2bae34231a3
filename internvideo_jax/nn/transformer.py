"""One pre-norm transformer stack for every tower: a scan over layers with optional remat."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from internvideo_jax.nn.attention import SelfAttention
from internvideo_jax.nn.linear import default_kernel_init
from internvideo_jax.nn.mlp import Activation, Mlp
from internvideo_jax.nn.normalization import layer_norm, rms_norm
from internvideo_jax.nn.partitioning import with_axes

Remat = Literal["none", "full", "dots"]
Dtype = Literal["float32", "bfloat16", "float16"]


@dataclasses.dataclass(frozen=True)
class TransformerConfig:
    """Dimensions and options of a transformer stack.

    Attributes:
      width: D, the size of the residual stream.
      depth: number of blocks.
      num_heads: attention heads; must divide `width`.
      mlp_dim: hidden size of the MLP.
      norm: kind of the two norms before attention and MLP.
      norm_epsilon: epsilon of those norms and of the q/k norms.
      activation: GELU variant of the MLP.
      qkv_bias: whether the qkv projection has a bias.
      qk_norm: whether q and k are RMS-normalised over the full width.
      layer_scale_init: initial value of the per-channel branch scales; None leaves them out.
      drop_path_rate: stochastic depth of the last block; rates grow linearly from 0.
      attention_over_heads: see `SelfAttention.over_heads`.
      remat: what the backward pass recomputes: nothing, whole blocks, or all but matmuls.
      dtype: compute dtype; parameters are float32 until cast by their owner.
    """

    width: int
    depth: int
    num_heads: int
    mlp_dim: int
    norm: Literal["rmsnorm", "layernorm"] = "rmsnorm"
    norm_epsilon: float = 1e-6
    activation: Activation = "gelu_tanh"
    qkv_bias: bool = False
    qk_norm: bool = True
    layer_scale_init: float | None = 1e-5
    drop_path_rate: float = 0.0
    attention_over_heads: bool = False
    remat: Remat = "none"
    dtype: Dtype = "float32"


class LayerScale(nn.Module):
    """Multiplies by a per-channel `gamma` in float32 and casts back."""

    init_value: float

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        init = with_axes(nn.initializers.constant(self.init_value), ("norm",))
        gamma = self.param("gamma", init, (x.shape[-1],), jnp.float32)
        return (x.astype(jnp.float32) * gamma).astype(x.dtype)


def drop_path(x: jax.Array, rate: jax.Array, rng: jax.Array) -> jax.Array:
    """Zeroes whole samples of a branch `[B, ...]` with probability `rate`, rescaling the others."""
    shape = (x.shape[0],) + (1,) * (x.ndim - 1)
    keep = 1.0 - rate
    kept = jax.random.bernoulli(rng, keep, shape)
    return jnp.where(kept, x / keep.astype(x.dtype), jnp.zeros_like(x))


class Block(nn.Module):
    """One layer, `x + ls1(attn(norm1(x)))` then `+ ls2(mlp(norm2(.)))`, as the body of a scan."""

    config: TransformerConfig
    deterministic: bool

    def __call__(
        self, carry: tuple[jax.Array, jax.Array], layer: dict[str, jax.Array]
    ) -> tuple[tuple[jax.Array, jax.Array], None]:
        """Transforms tokens `[B, N, D]`; writes them into slot `layer["slot"]` of the buffer.

        Only the block itself is under remat: the buffer must not become one of its saved inputs.
        """
        x, buffer = carry
        forward: Callable[..., jax.Array] = Block.transform
        if self.config.remat != "none":
            policy = None
            if self.config.remat == "dots":
                policy = jax.checkpoint_policies.dots_with_no_batch_dims_saveable
            forward = nn.remat(Block.transform, prevent_cse=False, policy=policy)
        x = forward(self, x, layer["index"], layer["drop_path_rate"])
        x = nn.with_logical_constraint(x, ("batch", "tokens", "embed_act"))
        if buffer.size:
            slot = jnp.maximum(layer["slot"], 0)
            current = jax.lax.dynamic_index_in_dim(buffer, slot, keepdims=False)
            update = jnp.where(layer["slot"] >= 0, x, current)
            buffer = jax.lax.dynamic_update_index_in_dim(buffer, update, slot, 0)
        return (x, buffer), None

    @nn.compact
    def transform(self, x: jax.Array, index: jax.Array, drop_path_rate: jax.Array) -> jax.Array:
        c = self.config
        dtype = jnp.dtype(c.dtype)
        norm = rms_norm if c.norm == "rmsnorm" else layer_norm

        def out_kernel_init(key: jax.Array, shape: Sequence[int], dtype: Any) -> jax.Array:
            # Deeper residual branches start smaller (upstream `fix_init_weight`).
            return default_kernel_init(key, shape, dtype) / jnp.sqrt(2.0 * (index + 1))

        def add_branch(x: jax.Array, branch: jax.Array, scale_name: str) -> jax.Array:
            if c.layer_scale_init is not None:
                branch = LayerScale(c.layer_scale_init, name=scale_name)(branch)
            if c.drop_path_rate > 0 and not self.deterministic:
                branch = drop_path(branch, drop_path_rate, self.make_rng("dropout"))
            return x + branch

        attn = SelfAttention(
            num_heads=c.num_heads,
            qkv_bias=c.qkv_bias,
            qk_norm=c.qk_norm,
            norm_epsilon=c.norm_epsilon,
            over_heads=c.attention_over_heads,
            dtype=dtype,
            out_kernel_init=out_kernel_init,
            name="attn",
        )
        mlp = Mlp(c.mlp_dim, c.width, c.activation, dtype, out_kernel_init, name="mlp")
        x = add_branch(x, attn(norm(c.norm_epsilon, dtype, "norm1")(x)), "ls1")
        return add_branch(x, mlp(norm(c.norm_epsilon, dtype, "norm2")(x)), "ls2")


def transformer(
    config: TransformerConfig,
    x: jax.Array,
    *,
    name: str = "blocks",
    hidden_layers: tuple[int, ...] = (),
    deterministic: bool = True,
) -> tuple[jax.Array, jax.Array]:
    """Runs the stack on tokens; call it inside a compact method.

    Parameters are stacked on a leading `layers` axis, so compile time does not grow with depth, and
    their layout does not depend on which hidden states are returned.

    Args:
      config: dimensions and options.
      x: tokens `[B, N, D]`.
      name: parameter name of the stack.
      hidden_layers: ascending indices of the blocks whose outputs are wanted.
      deterministic: False turns drop path on (needs the `dropout` RNG).

    Returns:
      The last block's output `[B, N, D]` and the wanted outputs `[K, B, N, D]`.

    Raises:
      ValueError: `hidden_layers` are not distinct, ascending indices of blocks.
    """
    if list(hidden_layers) != sorted({i for i in hidden_layers if 0 <= i < config.depth}):
        raise ValueError(
            f"expected ascending, distinct block indices in [0, {config.depth}), found"
            f" {hidden_layers}; name the layers you want in that form"
        )
    slots = np.full(config.depth, -1, np.int32)
    slots[list(hidden_layers)] = np.arange(len(hidden_layers))
    layers = {
        "index": jnp.arange(config.depth),
        "drop_path_rate": jnp.linspace(0, config.drop_path_rate, config.depth, dtype=jnp.float32),
        "slot": jnp.asarray(slots),
    }
    x = nn.with_logical_constraint(x, ("batch", "tokens", "embed_act"))
    buffer = jnp.zeros((len(hidden_layers), *x.shape), x.dtype)
    stack = nn.scan(
        Block,
        variable_axes={"params": 0, "intermediates": 0},
        split_rngs={"params": True, "dropout": True},
        length=config.depth,
        metadata_params={nn.PARTITION_NAME: "layers"},
    )(config, deterministic, name=name)
    (x, buffer), _ = stack((x, buffer), layers)
    return x, buffer
