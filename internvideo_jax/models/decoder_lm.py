"""Causal language models of the LLaMA kind: an embedding, decoder blocks, a head."""

import dataclasses
from typing import Literal

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from internvideo_jax.config import Size
from internvideo_jax.models.architecture import Architecture, Tower
from internvideo_jax.nn.decoder_block import DecoderBlock, DecoderConfig, DecoderInputs, KVCache
from internvideo_jax.nn.embedding import embedding, tied_logits
from internvideo_jax.nn.linear import dense
from internvideo_jax.nn.normalization import rms_norm
from internvideo_jax.nn.rotary import rotary_tables
from internvideo_jax.nn.stack import stack


@dataclasses.dataclass(frozen=True, kw_only=True)
class DecoderLMConfig(DecoderConfig):
    """Dimensions and options of a language model; those of its blocks are in `DecoderConfig`.

    Attributes:
      vocab_size: V.
      head: a head of its own, one tied to the embedding, or none.
    """

    vocab_size: Size
    head: Literal["linear", "tied", "none"] = "linear"


@flax.struct.dataclass
class Cache:
    """What a language model remembers of earlier calls.

    Attributes:
      layers: keys and values `[depth, B, M, Hkv, Dh]`.
      lengths: how many of the M places each row has filled, `[B]` int32.
    """

    layers: KVCache
    lengths: jax.Array


@flax.struct.dataclass
class DecoderOutput:
    """What the language model returns.

    Attributes:
      tokens: the last block's output, normalised, `[B, N, D]`.
      hidden_states: outputs of the wanted blocks `[K, B, N, D]`; K may be 0.
      cache: the cache with the new tokens, if there was one.
    """

    tokens: jax.Array
    hidden_states: jax.Array
    cache: Cache | None = None


class DecoderLM(Tower):
    """Embedding, decoder blocks, norm; `logits` of the tokens on demand."""

    config: DecoderLMConfig

    input_parts = ("embed",)

    def setup(self) -> None:
        c = self.config
        dtype = jnp.dtype(c.dtype)
        self.embed = embedding(c.vocab_size, c.width, dtype, None)
        if c.head == "linear":
            self.head = dense(c.vocab_size, ("embed", "vocab"), dtype, None, use_bias=False)

    @nn.compact
    def __call__(
        self,
        ids: jax.Array,
        lengths: jax.Array | None = None,
        *,
        cache: Cache | None = None,
        hidden_layers: tuple[int, ...] = (),
        deterministic: bool = True,
    ) -> DecoderOutput:
        """Encodes texts from left to right; positions count on from the cache's.

        Args:
          ids: `[B, N]`, padded on the right.
          lengths: integers `[B]`, how many of a row's ids are no padding; None for all.
          cache: what earlier calls left; there must be room for N more tokens.
          hidden_layers: ascending indices of the blocks whose outputs are wanted.
          deterministic: False turns the adapters' dropout on (needs the `dropout` RNG).
        """
        c = self.config
        offset = None if cache is None else cache.lengths
        positions = jnp.arange(ids.shape[1])[None]
        if cache is not None:
            filled = cache.lengths + (ids.shape[1] if lengths is None else lengths)
            positions, lengths = cache.lengths[:, None] + positions, filled
        inputs = DecoderInputs(rotary_tables(positions, c.head_dim, c.rope_theta), offset, lengths)
        stacked = stack(
            DecoderBlock,
            c,
            self.embed(ids),
            inputs,
            depth=c.depth,
            remat=c.remat,
            hidden_layers=hidden_layers,
            cache=None if cache is None else cache.layers,
            deterministic=deterministic,
        )
        tokens = rms_norm(c.norm_epsilon, jnp.dtype(c.dtype), "norm")(stacked.x)
        if self.is_initializing() and c.head != "none":
            self.logits(tokens)
        if cache is not None:
            cache = Cache(stacked.cache, filled)
        return DecoderOutput(tokens, stacked.hidden_states, cache)

    def logits(self, tokens: jax.Array) -> jax.Array:
        """Logits `[B, N, V]` float32 of the words that follow tokens `[B, N, D]`.

        Raises:
          ValueError: the model has no head.
        """
        head = self.config.head
        if head == "none":
            raise ValueError("expected a language model with a head, found `head` 'none'")
        if head == "tied":
            return tied_logits(self.embed, tokens)
        return jnp.asarray(self.head(tokens), jnp.float32)

    def empty_cache(self, batch_size: int, length: int) -> Cache:
        """A cache with room for `length` tokens in each of `batch_size` rows."""
        c = self.config
        shape = (c.depth, batch_size, length, c.num_kv_heads, c.head_dim)
        zeros = jnp.zeros(shape, c.dtype)
        return Cache(KVCache(zeros, zeros), jnp.zeros(batch_size, jnp.int32))

    def example_inputs(self, batch_size: int = 1) -> tuple[jax.ShapeDtypeStruct, ...]:
        """Shape of a batch of ids."""
        return (jax.ShapeDtypeStruct((batch_size, 32), jnp.int32),)

    def is_decayed(self, path: str) -> bool:
        """Whether weight decay applies: to all matrices, those of adapters included."""
        return path.endswith(("/lora_a", "/lora_b")) or super().is_decayed(path)


ARCHITECTURES = {"decoder_lm": Architecture(DecoderLMConfig, DecoderLM)}
