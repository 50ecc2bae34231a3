"""The text tower of InternVideo2-CLIP 1B and 6B: a LLaMA whose last token stands for the text.

Source: upstream `internvideo2_clip_text.py` in
`InternVideo2/multi_modality/models/backbones/internvideo2/`.
"""

import dataclasses
from typing import Annotated

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from internvideo_jax.config import CheckedConfig, Range, Size, Width
from internvideo_jax.models.architecture import Architecture, Tower
from internvideo_jax.models.decoder_lm import DecoderLM, DecoderLMConfig
from internvideo_jax.nn.linear import default_kernel_init
from internvideo_jax.nn.partitioning import with_axes


@dataclasses.dataclass(frozen=True)
class LlamaTextConfig(CheckedConfig):
    """Dimensions and options of the text tower.

    Attributes:
      lm: the language model, without a head.
      projection_dim: P, the size of a text's embedding.
      pad_id: id of the padding.
      max_length: tokens of a text in examples.
    """

    lm: DecoderLMConfig
    projection_dim: Width = 768
    pad_id: Annotated[int, Range(0, 2**20)] = 0
    max_length: Size = 80


def internvl_c_text() -> LlamaTextConfig:
    """The text tower of InternVL-C 13B, a LLaMA-7B with a Chinese vocabulary."""
    lm = DecoderLMConfig(
        width=4096,
        depth=32,
        num_heads=32,
        num_kv_heads=32,
        head_dim=128,
        mlp_dim=11_008,
        vocab_size=49_954,
        head="none",
    )
    return LlamaTextConfig(lm)


@flax.struct.dataclass
class LlamaTextOutput:
    """What the tower returns.

    Attributes:
      pooled: the text's embedding `[B, P]`, not normalised.
      tokens: the language model's output `[B, N, D]`.
      hidden_states: outputs of its wanted blocks `[K, B, N, D]`; K may be 0.
    """

    pooled: jax.Array
    tokens: jax.Array
    hidden_states: jax.Array


class LlamaText(Tower):
    """A language model whose last token that is no padding is projected."""

    config: LlamaTextConfig

    @nn.compact
    def __call__(
        self,
        ids: jax.Array,
        *,
        hidden_layers: tuple[int, ...] = (),
        deterministic: bool = True,
    ) -> LlamaTextOutput:
        """Encodes texts.

        Args:
          ids: `[B, N]`, padded on the right.
          hidden_layers: ascending indices of the blocks whose outputs are wanted.
          deterministic: False turns the adapters' dropout on (needs the `dropout` RNG).
        """
        c = self.config
        places = jnp.arange(1, ids.shape[1] + 1)
        lengths = jnp.max(places * (ids != c.pad_id), axis=1)
        lm = DecoderLM(c.lm, name="lm")
        output = lm(ids, lengths, hidden_layers=hidden_layers, deterministic=deterministic)
        last = jnp.maximum(lengths - 1, 0)[:, None, None]
        pooled = jnp.take_along_axis(output.tokens, last, axis=1)[:, 0]
        init = with_axes(default_kernel_init, ("embed", "pooled"))
        projection = self.param("projection", init, (c.lm.width, c.projection_dim), jnp.float32)
        pooled = pooled @ projection.astype(pooled.dtype)
        return LlamaTextOutput(pooled, output.tokens, output.hidden_states)

    def example_inputs(self, batch_size: int = 1) -> tuple[jax.ShapeDtypeStruct, ...]:
        """Shape of a batch of ids."""
        return (jax.ShapeDtypeStruct((batch_size, self.config.max_length), jnp.int32),)

    def is_decayed(self, path: str) -> bool:
        """Whether weight decay applies: to all matrices."""
        return path == "projection" or DecoderLM(self.config.lm, parent=None).is_decayed(path)

    @property
    def last_layer(self) -> int:
        return self.config.lm.depth + 1

    def layer_of(self, path: str) -> int | np.ndarray:
        """Layer of a parameter, as `DecoderLM` has it; the projection is behind all."""
        return DecoderLM(self.config.lm, parent=None).layer_of(path.removeprefix("lm/"))


ARCHITECTURES = {"llama_text": Architecture(LlamaTextConfig, LlamaText)}
