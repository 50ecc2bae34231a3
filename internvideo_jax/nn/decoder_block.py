"""The block of causal language models: RMSNorm, rotary positions, grouped queries, gated MLP."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from internvideo_jax.config import Epsilon, Few, PositiveFactor, Width
from internvideo_jax.nn.attention import attend
from internvideo_jax.nn.lora import LoRAConfig, adaptable_dense
from internvideo_jax.nn.mlp import Activation, activate
from internvideo_jax.nn.normalization import rms_norm
from internvideo_jax.nn.rotary import rotate
from internvideo_jax.nn.stack import Layer, StackConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class DecoderConfig(StackConfig):
    """Dimensions and options of a stack of decoder blocks.

    Attributes:
      num_kv_heads: key and value heads; must divide `num_heads`.
      head_dim: size of a head, even; the heads together need not be as wide as `width`.
      norm_epsilon: epsilon of the norms.
      activation: of the MLP's gate.
      rope_theta: base of the rotary wavelengths.
      qkv_bias: whether the query, key and value projections have biases.
      proj_bias: whether the attention's output projection has one.
      lora: adapters; None for none.
    """

    num_kv_heads: Few
    head_dim: Width
    norm_epsilon: Epsilon = 1e-6
    activation: Activation = "silu"
    rope_theta: PositiveFactor = 10_000.0
    qkv_bias: bool = False
    proj_bias: bool = False
    lora: LoRAConfig | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.head_dim % 2:
            raise ValueError(
                f"expected an even head_dim for rotary positions, found {self.head_dim}"
            )
        if self.num_heads % self.num_kv_heads:
            raise ValueError(
                "expected a number of query heads that the key-value heads divide, found"
                f" {self.num_heads} and {self.num_kv_heads}; change `num_kv_heads` in the model's"
                " config"
            )


class KVCache(NamedTuple):
    """Keys and values of earlier tokens, `[B, M, Hkv, Dh]` each (of a whole stack `[L, ...]`)."""

    k: jax.Array
    v: jax.Array


class DecoderInputs(NamedTuple):
    """What every block of a stack reads besides the tokens.

    Attributes:
      rotary: tables of the tokens' positions, see `nn.rotary.rotary_tables`.
      offset: how many tokens each row's cache holds already, int32 `[B]`; None without a cache.
      lengths: how many keys each row has with these tokens, `[B]` int32; None for all.
    """

    rotary: tuple[jax.Array, jax.Array]
    offset: jax.Array | None
    lengths: jax.Array | None = None


class DecoderAttention(nn.Module):
    """Causal self-attention `[B, N, D] -> [B, N, D]`, over a cache if there is one."""

    config: DecoderConfig
    deterministic: bool

    @nn.compact
    def __call__(
        self, x: jax.Array, shared: DecoderInputs, cache: KVCache | None
    ) -> tuple[jax.Array, KVCache | None]:
        c = self.config
        linear = _linear(c, self.deterministic)

        def project(name: str, heads: int, axis: str) -> jax.Array:
            axes = ("embed", axis, "head_dim")
            layer = linear((heads, c.head_dim), axes, name=name, use_bias=c.qkv_bias)
            return jnp.asarray(layer(x))

        q = rotate(project("q", c.num_heads, "heads"), shared.rotary)
        k = rotate(project("k", c.num_kv_heads, "kv_heads"), shared.rotary)
        v = project("v", c.num_kv_heads, "kv_heads")
        if cache is not None and shared.offset is not None:
            k, v = _write(cache.k, k, shared.offset), _write(cache.v, v, shared.offset)
            cache = KVCache(k, v)
        out = attend(
            q,
            k,
            v,
            kv_lengths=shared.lengths,
            query_offset=0 if shared.offset is None else shared.offset,
            is_causal=True,
        )
        axes = ("heads", "head_dim", "embed")
        proj = linear(c.width, axes, name="proj", axis=(-2, -1), use_bias=c.proj_bias)
        return proj(out), cache


class GatedMlp(nn.Module):
    """`down(activation(gate(x)) * up(x))`, `[..., D] -> [..., D]`, without biases."""

    config: DecoderConfig
    deterministic: bool

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        c = self.config
        linear = functools.partial(_linear(c, self.deterministic), use_bias=False)
        gate = linear(c.mlp_dim, ("embed", "mlp"), name="gate")(x)
        up = linear(c.mlp_dim, ("embed", "mlp"), name="up")(x)
        return linear(c.width, ("mlp", "embed"), name="down")(activate(gate, c.activation) * up)


class DecoderBlock(nn.Module):
    """`x + attn(attn_norm(x))`, then `+ mlp(mlp_norm(.))`."""

    config: DecoderConfig
    deterministic: bool

    @nn.compact
    def __call__(self, x: jax.Array, layer: Layer, shared: DecoderInputs) -> Any:
        """Transforms tokens `[B, N, D]`; with a cache, returns it as well."""
        c = self.config
        norm = functools.partial(rms_norm, c.norm_epsilon, jnp.dtype(c.dtype))
        attention = DecoderAttention(c, self.deterministic, name="attn")
        out, cache = attention(norm("attn_norm")(x), shared, layer.cache)
        x = x + out
        x = x + GatedMlp(c, self.deterministic, name="mlp")(norm("mlp_norm")(x))
        return x if cache is None else (x, cache)


def _linear(config: DecoderConfig, deterministic: bool) -> Callable[..., nn.Module]:
    """The linear layers of a block, adapted where the config says so."""
    dtype, lora = jnp.dtype(config.dtype), config.lora
    return functools.partial(adaptable_dense, dtype=dtype, lora=lora, deterministic=deterministic)


def _write(buffer: jax.Array, new: jax.Array, offset: jax.Array) -> jax.Array:
    """`buffer` `[B, M, ...]` with `new` `[B, N, ...]` in place from each row's `offset` on."""
    write = functools.partial(jax.lax.dynamic_update_slice_in_dim, axis=0)
    return jax.vmap(write)(buffer, new.astype(buffer.dtype), offset)
