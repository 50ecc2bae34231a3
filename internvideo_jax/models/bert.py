"""The text tower of InternVideo2 stage 2: a BERT whose last layers also attend to other media.

Source: upstream `InternVideo2/multi_modality/models/backbones/bert/xbert.py`.
"""

import dataclasses
from typing import Annotated, Literal

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from internvideo_jax.config import Blocks, Epsilon, Range, Rate, Size, Width
from internvideo_jax.models.architecture import Architecture, Tower
from internvideo_jax.nn.embedding import embedding, look_up, tied_logits
from internvideo_jax.nn.linear import dense
from internvideo_jax.nn.mlp import activate
from internvideo_jax.nn.normalization import layer_norm
from internvideo_jax.nn.partitioning import with_axes
from internvideo_jax.nn.postnorm_block import PostNormBlock, PostNormConfig, PostNormInputs
from internvideo_jax.nn.stack import stack

Mode = Literal["text", "fusion", "multi_modal"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class BertConfig(PostNormConfig):
    """Dimensions and options of a BERT; those of its blocks are in `PostNormConfig`.

    Attributes:
      vocab_size: V.
      max_length: tokens that there are positions for.
      type_vocab_size: token types; only the first is used.
      pad_id: id whose embedding is not trained.
      fusion_layer: first layer with cross attention; as many text layers come before.
      cross_width: E, the width of the states that those layers attend to; None without any.
      mlm_head: whether there is a masked-language head.
    """

    vocab_size: Size = 30_522
    max_length: Size = 512
    type_vocab_size: Size = 2
    pad_id: Annotated[int, Range(0, 2**20)] = 0
    fusion_layer: Blocks
    cross_width: Width | None = None
    mlm_head: bool = True
    norm_epsilon: Epsilon = 1e-12
    dropout_rate: Rate = 0.1
    attention_dropout_rate: Rate = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.fusion_layer <= self.depth:
            raise ValueError(
                f"expected fusion_layer among the {self.depth} layers or behind them, found"
                f" {self.fusion_layer}"
            )
        if (self.cross_width is None) != (self.fusion_layer == self.depth):
            raise ValueError(
                "expected cross_width exactly where there are layers from fusion_layer on, found"
                f" {self.cross_width} with {self.depth} layers and fusion_layer {self.fusion_layer}"
            )


def bert_large_fusion() -> BertConfig:
    """The text tower of the 1B model: BERT-large, its last five layers with cross attention."""
    return BertConfig(
        width=1024, depth=24, num_heads=16, mlp_dim=4096, fusion_layer=19, cross_width=1408
    )


@flax.struct.dataclass
class BertOutput:
    """What the tower returns.

    Attributes:
      tokens: last layer's output `[B, N, D]`; the first token's row stands for the text.
      embedded: what entered the first layer, `[B, N, D]`.
      hidden_states: outputs of the wanted layers `[K, B, N, D]`; K may be 0.
    """

    tokens: jax.Array
    embedded: jax.Array
    hidden_states: jax.Array


class Embeddings(nn.Module):
    """Sum of word, position and type embeddings of ids `[B, N]`, normalised: `[B, N, D]`."""

    config: BertConfig

    def setup(self) -> None:
        c = self.config
        dtype = jnp.dtype(c.dtype)
        self.word = embedding(c.vocab_size, c.width, dtype, "word")
        self.position = embedding(c.max_length, c.width, dtype, "position", "position")
        self.type = embedding(c.type_vocab_size, c.width, dtype, "type", "position")
        self.norm = layer_norm(c.norm_epsilon, dtype, "norm")
        self.dropout = nn.Dropout(c.dropout_rate)

    def __call__(self, ids: jax.Array, deterministic: bool) -> jax.Array:
        x = look_up(self.word, ids, self.config.pad_id) + self.type(jnp.zeros_like(ids))
        x = self.norm(x + self.position(jnp.arange(ids.shape[1])))
        return jnp.asarray(self.dropout(x, deterministic=deterministic))


class MlmHead(nn.Module):
    """Logits of words `[B, N, V]` float32 from tokens `[B, N, D]` and the word embedding."""

    config: BertConfig

    @nn.compact
    def __call__(self, tokens: jax.Array, word: nn.Embed) -> jax.Array:
        c = self.config
        dtype = jnp.dtype(c.dtype)
        x = activate(dense(c.width, ("embed", "norm"), dtype, "dense")(tokens), c.activation)
        x = layer_norm(c.norm_epsilon, dtype, "norm")(x)
        zeros = with_axes(nn.initializers.zeros, ("vocab",))
        bias = self.param("bias", zeros, (c.vocab_size,), jnp.float32)
        return tied_logits(word, x) + bias


class Bert(Tower):
    """Text layers, fusion layers, and a head that guesses masked words."""

    config: BertConfig

    input_parts = ("embeddings",)

    def setup(self) -> None:
        self.embeddings = Embeddings(self.config)
        if self.config.mlm_head:
            self.mlm_head = MlmHead(self.config)

    @nn.compact
    def __call__(
        self,
        text: jax.Array,
        mask: jax.Array | None = None,
        states: jax.Array | None = None,
        states_mask: jax.Array | None = None,
        *,
        mode: Mode = "multi_modal",
        hidden_layers: tuple[int, ...] = (),
        deterministic: bool = True,
    ) -> BertOutput:
        """Encodes texts, alone or together with what the states show.

        Args:
          text: ids `[B, N]`; in mode "fusion" the tokens `[B, N, D]` that mode "text" returned.
          mask: integers `[B, N]`, 0 at padding; None where there is none.
          states: what the fusion layers attend to, `[B, M, E]`; not read in mode "text".
          states_mask: integers `[B, M]`, 0 at states that are not attended to.
          mode: which layers run: those before `fusion_layer`, those from it on, or all.
          hidden_layers: ascending indices, among all layers, of those whose outputs are wanted.
          deterministic: False turns dropout on (needs the `dropout` RNG).

        Raises:
          ValueError: states are missing, the text is too long, or bad `hidden_layers`.
        """
        c = self.config
        spans = {
            "text": (0, c.fusion_layer),
            "fusion": (c.fusion_layer, c.depth),
            "multi_modal": (0, c.depth),
        }
        first, last = spans[mode]
        if list(hidden_layers) != sorted({i for i in hidden_layers if first <= i < last}):
            raise ValueError(
                f"expected ascending, distinct layers in [{first}, {last}) for mode {mode!r}, found"
                f" {hidden_layers}"
            )
        if states is None and last > c.fusion_layer:
            raise ValueError(
                f"expected states for mode {mode!r}, found None; mode 'text' needs none"
            )
        if text.shape[1] > c.max_length:
            raise ValueError(
                f"expected texts of at most {c.max_length} tokens, found {text.shape[1]}; cut them"
            )
        x = text if mode == "fusion" else self.embeddings(text, deterministic)
        embedded = x
        hidden_states = []
        text_inputs = PostNormInputs(mask=mask)
        fusion_inputs = PostNormInputs(mask=mask, states=states, states_mask=states_mask)
        for start, stop, name, inputs in (
            (0, c.fusion_layer, "text_blocks", text_inputs),
            (c.fusion_layer, c.depth, "fusion_blocks", fusion_inputs),
        ):
            if start == stop or not first <= start < last:
                continue
            stacked = stack(
                PostNormBlock,
                c,
                x,
                inputs,
                depth=stop - start,
                name=name,
                remat=c.remat,
                hidden_layers=tuple(i - start for i in hidden_layers if start <= i < stop),
                deterministic=deterministic,
            )
            x = stacked.x
            hidden_states.append(stacked.hidden_states)
        if self.is_initializing() and c.mlm_head:
            self.mlm_logits(x)
        return BertOutput(x, embedded, jnp.concatenate(hidden_states or [x[None][:0]]))

    def mlm_logits(self, tokens: jax.Array) -> jax.Array:
        """Logits `[B, N, V]` float32 of the words that stand at tokens `[B, N, D]`."""
        return self.mlm_head(tokens, self.embeddings.word)

    def example_inputs(self, batch_size: int = 1) -> tuple[jax.ShapeDtypeStruct, ...]:
        """Shapes of text, mask and states."""
        c = self.config
        text = jax.ShapeDtypeStruct((batch_size, min(32, c.max_length)), jnp.int32)
        if c.cross_width is None:
            return text, text
        return text, text, jax.ShapeDtypeStruct((batch_size, 1, c.cross_width), jnp.float32)

    def layer_of(self, path: str) -> int | np.ndarray:
        """Layer of a parameter: embeddings 0, block i i + 1, the head last."""
        layers = np.arange(1, self.config.depth + 1)
        if path.startswith("text_blocks/"):
            return layers[: self.config.fusion_layer]
        if path.startswith("fusion_blocks/"):
            return layers[self.config.fusion_layer :]
        return super().layer_of(path)


ARCHITECTURES = {"bert": Architecture(BertConfig, Bert)}
