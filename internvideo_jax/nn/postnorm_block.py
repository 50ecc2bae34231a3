"""Blocks that normalise after each branch: BERT's, with cross attention, and BEATs' DeepNorm."""

import dataclasses
import functools
from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from internvideo_jax.config import Epsilon, Factor, PositiveFactor, Rate
from internvideo_jax.nn.attention import attend, head_size
from internvideo_jax.nn.linear import dense
from internvideo_jax.nn.mlp import Activation, Mlp
from internvideo_jax.nn.normalization import layer_norm
from internvideo_jax.nn.partitioning import with_axes
from internvideo_jax.nn.stack import Layer, StackConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class PostNormConfig(StackConfig):
    """Dimensions and options of a stack of these blocks; the heads must divide the width.

    Attributes:
      norm_epsilon: epsilon of the layer norms.
      activation: activation of the MLPs.
      norm_first: normalise the input of each branch instead of the sum after it.
      residual_scale: factor on the stream before each sum; DeepNorm's alpha.
      gated_bias: the bias of the scores is scaled per query and head.
      gradient_scale: factor on the gradients at each block's input, which decay layer by layer.
      dropout_rate: dropout of each branch in training.
      attention_dropout_rate: dropout of the attention weights in training.
    """

    norm_epsilon: Epsilon = 1e-5
    activation: Activation = "gelu_erf"
    norm_first: bool = False
    residual_scale: PositiveFactor = 1.0
    gated_bias: bool = False
    gradient_scale: Factor = 1.0
    dropout_rate: Rate = 0.0
    attention_dropout_rate: Rate = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        head_size(self.width, self.num_heads)


class PostNormInputs(NamedTuple):
    """What every block of a stack reads besides the tokens; None for what it does not use.

    Attributes:
      mask: integers `[B, N]`, 0 at the tokens that no other attends to.
      bias: added to the scores of the self-attention, `[H, N, N]` float32.
      states: what a second attention reads, `[B, M, E]`; None leaves that out.
      states_mask: integers `[B, M]`, 0 at the states that no token attends to.
    """

    mask: jax.Array | None = None
    bias: jax.Array | None = None
    states: jax.Array | None = None
    states_mask: jax.Array | None = None


class MultiHeadAttention(nn.Module):
    """Attention of tokens `[B, N, D]` to states `[B, M, E]`, all four projections with biases."""

    config: PostNormConfig
    deterministic: bool

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        states: jax.Array,
        mask: jax.Array | None,
        bias: jax.Array | None = None,
    ) -> jax.Array:
        c = self.config
        dtype = jnp.dtype(c.dtype)
        features = (c.num_heads, head_size(c.width, c.num_heads))
        project = functools.partial(dense, features, ("embed", "heads", "head_dim"), dtype)
        q, k, v = project("q")(x), project("k")(states), project("v")(states)
        segment_ids = None
        if mask is not None:
            # A key of another segment than the queries' is not seen.
            segment_ids = (jnp.ones(x.shape[:2], jnp.int32), (mask != 0).astype(jnp.int32))
        if bias is not None:
            bias = bias[None]
            if c.gated_bias:
                bias = self._gate(q)[..., None] * bias
        is_dropping = c.attention_dropout_rate > 0 and not self.deterministic
        out = attend(
            q,
            k,
            v,
            bias=bias,
            segment_ids=segment_ids,
            dropout_rate=c.attention_dropout_rate if is_dropping else 0.0,
            dropout_rng=self.make_rng("dropout") if is_dropping else None,
        )
        return dense(c.width, ("heads", "head_dim", "embed"), dtype, "proj", axis=(-2, -1))(out)

    def _gate(self, q: jax.Array) -> jax.Array:
        """Factors `[B, H, N]` float32 on the bias, from queries `[B, N, H, Dh]`.

        Source: the gated relative position bias of WavLM, which BEATs took over.
        """
        logits = dense(8, ("head_dim", "norm"), jnp.dtype("float32"), "gate")(q)
        first, second = jnp.split(jax.nn.sigmoid(logits.reshape(*q.shape[:3], 2, 4).sum(-1)), 2, -1)
        ones = with_axes(nn.initializers.ones, ("heads",))
        scale = self.param("gate_scale", ones, (self.config.num_heads,), jnp.float32)
        gate = first[..., 0] * (second[..., 0] * scale - 1.0) + 2.0
        return gate.swapaxes(1, 2)


class PostNormBlock(nn.Module):
    """`x = norm(a x + branch(x))` for self-attention, cross attention (if any), and the MLP."""

    config: PostNormConfig
    deterministic: bool

    @nn.compact
    def __call__(self, x: jax.Array, layer: Layer, shared: PostNormInputs) -> jax.Array:
        """Transforms tokens `[B, N, D]`."""
        c = self.config
        dtype = jnp.dtype(c.dtype)
        x = scale_gradient(x, c.gradient_scale)
        attention = functools.partial(MultiHeadAttention, c, self.deterministic)
        self_attention = attention(name="attn")
        x = self._add(x, "attn_norm", lambda h: self_attention(h, h, shared.mask, shared.bias))
        states = shared.states
        if states is not None:
            cross = attention(name="cross_attn")
            x = self._add(x, "cross_norm", lambda h: cross(h, states, shared.states_mask))
        return self._add(x, "mlp_norm", Mlp(c.mlp_dim, c.width, c.activation, dtype, name="mlp"))

    def _add(
        self, x: jax.Array, norm_name: str, branch: Callable[[jax.Array], jax.Array]
    ) -> jax.Array:
        c = self.config
        norm = layer_norm(c.norm_epsilon, jnp.dtype(c.dtype), norm_name)
        branch_input = norm(x) if c.norm_first else x
        out = nn.Dropout(c.dropout_rate)(branch(branch_input), deterministic=self.deterministic)
        return x + out if c.norm_first else norm(c.residual_scale * x + out)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def scale_gradient(x: jax.Array, factor: float) -> jax.Array:
    """`x` itself, whose gradient is multiplied by `factor`."""
    return x


scale_gradient.defvjp(lambda x, factor: (x, None), lambda factor, _, g: (factor * g,))
