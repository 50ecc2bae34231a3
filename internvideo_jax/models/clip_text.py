"""The text tower of CLIP, also as ViCLIP and MobileCLIP have it.

Source: upstream `InternVideo1/Pretrain/ViCLIP/models/backbones/clip/clip_text.py`, and
`mobileclip/text_encoder.py` of `InternVideo2/multi_modality/models/backbones/internvideo2`, which
InternVideo2-CLIP S, B and L read their texts with.
"""

import dataclasses
from collections.abc import Sequence
from typing import ClassVar, Literal

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from internvideo_jax.config import Few, Size, Width
from internvideo_jax.models.architecture import Architecture, Tower
from internvideo_jax.nn.attention import head_size
from internvideo_jax.nn.blocks import CausalPreNormBlock, PreNormBlock
from internvideo_jax.nn.embedding import embedding
from internvideo_jax.nn.linear import default_kernel_init
from internvideo_jax.nn.mlp import Activation
from internvideo_jax.nn.normalization import layer_norm
from internvideo_jax.nn.partitioning import with_axes
from internvideo_jax.nn.position_embedding import Array, fit_positions, resize_position_table
from internvideo_jax.nn.stack import StackConfig, stack


@dataclasses.dataclass(frozen=True)
class ClipTextConfig(StackConfig):
    """Dimensions and options of a CLIP text tower; heads divide the width.

    Attributes:
      vocab_size: V; the largest id ends a text.
      max_length: tokens that there are positions for.
      projection_dim: P, the size of a text's embedding.
      activation: of the MLPs.
      is_causal: whether a token sees only what comes before it. Where it does not, it sees the
        padding, too, as upstream has it.
      other_lengths: positions of texts of another length than `max_length`: the first ones, or all
        of them resized to it.
      heads_by_layer: attention heads of each block, where they differ; else empty.
      mlp_dims_by_layer: hidden sizes of their MLPs, likewise.
    """

    vocab_size: Size = 49_408
    max_length: Size = 77
    projection_dim: Width = 512
    activation: Activation = "gelu_quick"
    is_causal: bool = True
    other_lengths: Literal["first", "resized"] = "first"
    heads_by_layer: tuple[Few, ...] = ()
    mlp_dims_by_layer: tuple[Size, ...] = ()

    norm: ClassVar = "layernorm"
    norm_epsilon: ClassVar = 1e-5
    qkv_bias: ClassVar = True
    qk_norm: ClassVar = False
    layer_scale_init: ClassVar = None

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("heads_by_layer", "mlp_dims_by_layer"):
            sizes: Sequence[int] = getattr(self, name)
            if len(sizes) not in (0, self.depth):
                raise ValueError(
                    f"expected {name} of none or all of the {self.depth} layers, found {sizes}"
                )
        head_size(self.width, self.num_heads)
        for heads in self.heads_by_layer:
            head_size(self.width, heads, "heads_by_layer")

    @property
    def least_parameters(self) -> int:
        dims = self.mlp_dims_by_layer or (self.mlp_dim,) * self.depth
        tables = self.vocab_size + self.max_length + self.projection_dim
        return self.width * (2 * sum(dims) + tables)

    @property
    def stacks(self) -> tuple["Run", ...]:
        """Runs of equal layers, each of which is a stack of its own."""
        sizes = list(
            zip(
                self.heads_by_layer or (self.num_heads,) * self.depth,
                self.mlp_dims_by_layer or (self.mlp_dim,) * self.depth,
                strict=True,
            )
        )
        starts = [i for i in range(self.depth) if i == 0 or sizes[i] != sizes[i - 1]]
        ends = [*starts[1:], self.depth]
        names = ["blocks"] if len(starts) < 2 else [f"blocks_{start}" for start in starts]
        return tuple(
            Run(name, start, end, *sizes[start])
            for name, start, end in zip(names, starts, ends, strict=False)
        )


@dataclasses.dataclass(frozen=True)
class Run:
    """Equal layers that follow each other.

    Attributes:
      name: of the stack that they are.
      start: their first one.
      end: the one after their last.
      num_heads: attention heads.
      mlp_dim: hidden size of the MLPs.
    """

    name: str
    start: int
    end: int
    num_heads: int
    mlp_dim: int


def clip_b_text(max_length: int = 77) -> ClipTextConfig:
    """The text tower of CLIP B/16 and B/32."""
    return ClipTextConfig(
        width=512, depth=12, num_heads=8, mlp_dim=2048, max_length=max_length, projection_dim=512
    )


def clip_l_text(max_length: int = 77) -> ClipTextConfig:
    """The text tower of CLIP L/14."""
    return ClipTextConfig(
        width=768, depth=12, num_heads=12, mlp_dim=3072, max_length=max_length, projection_dim=768
    )


def mobileclip_b_text() -> ClipTextConfig:
    """The text tower of MobileCLIP-B and MobileCLIP-B (LT)."""
    return dataclasses.replace(clip_b_text(), activation="gelu_erf", other_lengths="resized")


@flax.struct.dataclass
class ClipTextOutput:
    """What the tower returns.

    Attributes:
      pooled: the text's embedding `[B, P]`, not normalised.
      tokens: the last block's output, normalised, `[B, N, D]`.
      embedded: what entered the first block, `[B, N, D]`.
      hidden_states: outputs of the wanted blocks `[K, B, N, D]`; K may be 0.
    """

    pooled: jax.Array
    tokens: jax.Array
    embedded: jax.Array
    hidden_states: jax.Array


def fit_text_positions(table: Array, length: int, config: ClipTextConfig) -> Array:
    """Positions `[N, D]` of N tokens, from the table `[max_length, D]` of a config's model."""
    if config.other_lengths == "first":
        return fit_positions(table[None], length)[0]
    old, new = (len(table), 1, 1), (length, 1, 1)
    return resize_position_table(table[None], old, new, num_extra=0)[0]


class ClipText(Tower):
    """Embedding, positions, pre-norm blocks, norm; the end of the text is projected."""

    config: ClipTextConfig

    input_parts = ("token_embed", "pos_embed")

    @nn.compact
    def __call__(
        self,
        ids: jax.Array,
        *,
        hidden_layers: tuple[int, ...] = (),
        deterministic: bool = True,
    ) -> ClipTextOutput:
        """Encodes texts.

        Args:
          ids: `[B, N]`; the first of each row's largest id is the text's end.
          hidden_layers: ascending indices of the blocks whose outputs are wanted.
          deterministic: changes nothing, there is no dropout.

        Raises:
          ValueError: the texts are too long, or bad `hidden_layers`.
        """
        c = self.config
        dtype = jnp.dtype(c.dtype)
        if list(hidden_layers) != sorted({i for i in hidden_layers if 0 <= i < c.depth}):
            raise ValueError(
                f"expected ascending, distinct block indices in [0, {c.depth}), found"
                f" {hidden_layers}; name the layers you want in that form"
            )
        x = embedding(c.vocab_size, c.width, dtype, "token_embed")(ids)
        x = x + self._positions(ids.shape[1]).astype(dtype)
        embedded = x
        hidden_states = [x[None][:0]]
        for run in c.stacks:
            block = dataclasses.replace(
                c,
                num_heads=run.num_heads,
                mlp_dim=run.mlp_dim,
                heads_by_layer=(),
                mlp_dims_by_layer=(),
            )
            stacked = stack(
                CausalPreNormBlock if c.is_causal else PreNormBlock,
                block,
                x,
                depth=run.end - run.start,
                name=run.name,
                remat=c.remat,
                hidden_layers=tuple(
                    i - run.start for i in hidden_layers if run.start <= i < run.end
                ),
                deterministic=deterministic,
            )
            x = stacked.x
            hidden_states.append(stacked.hidden_states)
        tokens = layer_norm(c.norm_epsilon, dtype, "norm")(x)
        end = jnp.argmax(ids, axis=1)[:, None, None]
        pooled = jnp.take_along_axis(tokens, end, axis=1)[:, 0]
        init = with_axes(default_kernel_init, ("embed", "pooled"))
        projection = self.param("projection", init, (c.width, c.projection_dim), jnp.float32)
        pooled = pooled @ projection.astype(dtype)
        return ClipTextOutput(pooled, tokens, embedded, jnp.concatenate(hidden_states))

    def _positions(self, length: int) -> jax.Array:
        """Positions `[N, D]` of N tokens, float32."""
        c = self.config
        init = with_axes(nn.initializers.normal(0.01), ("position", "embed"))
        table = self.param("pos_embed", init, (c.max_length, c.width), jnp.float32)
        if length > c.max_length and c.other_lengths == "first":
            raise ValueError(
                f"expected texts of at most {c.max_length} tokens, found {length}; cut them"
            )
        return fit_text_positions(table, length, c)

    def example_inputs(self, batch_size: int = 1) -> tuple[jax.ShapeDtypeStruct, ...]:
        """Shape of a batch of ids."""
        return (jax.ShapeDtypeStruct((batch_size, self.config.max_length), jnp.int32),)

    def is_decayed(self, path: str) -> bool:
        """Whether weight decay applies: to all matrices."""
        return path == "projection" or super().is_decayed(path)

    def layer_of(self, path: str) -> int | np.ndarray:
        """Layer of a parameter: embeddings 0, block i i + 1, the rest last."""
        part = path.partition("/")[0]
        for run in self.config.stacks:
            if part == run.name:
                return np.arange(run.start + 1, run.end + 1)
        return super().layer_of(path)


ARCHITECTURES = {"clip_text": Architecture(ClipTextConfig, ClipText)}
