"""The VideoMAEv2 encoder, the MAE-side teacher of stage-1 pre-training.

Source: upstream `InternVideo2/single_modality/models/videomae.py`.
"""

import dataclasses
from typing import Annotated, ClassVar

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from internvideo_jax.config import Epsilon, Factor, Few, Frames, Range
from internvideo_jax.kernels.attention import attention
from internvideo_jax.models.architecture import Architecture, Tower
from internvideo_jax.models.video_vit import (
    PatchedVideoConfig,
    PatchEmbed,
    example_video,
    take_tokens,
    token_grid,
)
from internvideo_jax.nn.attention import SelfAttention
from internvideo_jax.nn.blocks import PreNormBlock
from internvideo_jax.nn.normalization import layer_norm
from internvideo_jax.nn.partitioning import with_axes
from internvideo_jax.nn.position_embedding import resize_position_table, sinusoid_table
from internvideo_jax.nn.stack import stack


@dataclasses.dataclass(frozen=True)
class VideoMAEConfig(PatchedVideoConfig):
    """A VideoMAEv2 encoder; see `videomae_g14()`.

    Attributes:
      qkv_bias: whether q and v have biases (k's is zero).
      norm_epsilon: epsilon of all layer norms.
      learned_position: whether the position table is a parameter, as upstream makes it when the
        grid is not the native one.
      as_released: reproduce the published file's attention, whose softmax runs over the heads of
        one token (see `AttentionOverHeads`); off, attention is over tokens as intended.
    """

    # The sinusoids, up to `max_table`, are made anew by every process that builds the model.
    width: Annotated[int, Range(1, 2**13)]
    tubelet_size: Few = 2
    num_frames: Frames = 16
    layer_scale_init: Factor | None = None
    qkv_bias: bool = True
    norm_epsilon: Epsilon = 1e-6
    learned_position: bool = False
    as_released: bool = False

    norm: ClassVar = "layernorm"
    activation: ClassVar = "gelu_erf"
    qk_norm: ClassVar = False
    max_table: ClassVar = 2**26

    @property
    def native_grid(self) -> tuple[int, int, int]:
        """Grid of the sinusoid table before resizing: 8 steps of 224 pixels at patch 14 or 16."""
        side = 16 if self.patch_size == 14 else 14
        return 8, side, side


def videomae_g14() -> VideoMAEConfig:
    """VideoMAEv2-g/14 (1 B parameters)."""
    return VideoMAEConfig(width=1408, depth=40, num_heads=16, mlp_dim=6144)


@flax.struct.dataclass
class VideoMAEOutput:
    """Normalised last tokens `[B, N, D]` and the wanted blocks' outputs `[K, B, N, D]`.

    If the last block is among the wanted ones its output is the normalised one.
    """

    tokens: jax.Array
    hidden_states: jax.Array


class AttentionOverHeads(SelfAttention):
    """Attention over the H heads of each token instead of over tokens, its result scrambled.

    Upstream's published file computes this by handing a kernel transposed arrays.
    """

    def attend(self, q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        out = attention(*(jnp.swapaxes(a, 1, 2) for a in (q, k, v)))
        return out.reshape(q.shape)


class ReleasedBlock(PreNormBlock):
    """The layer of the published file."""

    attention_cls = AttentionOverHeads


class VideoMAE(Tower):
    """VideoMAEv2 encoder: tubelets, sinusoid positions, pre-norm blocks, final LayerNorm."""

    config: VideoMAEConfig

    input_parts = ("patch_embed", "pos_embed")

    @nn.compact
    def __call__(
        self,
        video: jax.Array,
        kept: jax.Array | None = None,
        *,
        hidden_layers: tuple[int, ...] = (),
    ) -> VideoMAEOutput:
        """Encodes normalised clips.

        Args:
          video: `[B, T, H, W, 3]` float; the sinusoid table is resized to the clip's grid.
          kept: `[B, K]` ascending indices of the tokens to keep; None keeps all.
          hidden_layers: ascending indices of the blocks whose outputs are wanted.
        """
        c = self.config
        dtype = jnp.dtype(c.dtype)
        grid = token_grid(video.shape[1:4], c.tubelet_size, c.patch_size)
        x = PatchEmbed(c.width, c.tubelet_size, c.patch_size, dtype, name="patch_embed")(video)
        native = sinusoid_table(int(np.prod(c.native_grid)), c.width)[None]
        if c.learned_position:
            table = resize_position_table(native, c.native_grid, c.grid, num_extra=0)
            init = with_axes(lambda key: jnp.asarray(table), (None, "position", "embed"))
            table = resize_position_table(self.param("pos_embed", init), c.grid, grid, num_extra=0)
        else:
            table = resize_position_table(native, c.native_grid, grid, num_extra=0)
        x = x + jnp.asarray(table).astype(dtype)
        if kept is not None:
            x = take_tokens(x, kept)
        block_cls = ReleasedBlock if c.as_released else PreNormBlock
        x, hidden_states, _ = stack(
            block_cls, c, x, depth=c.depth, remat=c.remat, hidden_layers=hidden_layers
        )
        x = layer_norm(c.norm_epsilon, dtype, "norm")(x)
        if hidden_layers and hidden_layers[-1] == c.depth - 1:
            hidden_states = hidden_states.at[-1].set(x)
        return VideoMAEOutput(x, hidden_states)

    def example_inputs(self, batch_size: int = 1) -> tuple[jax.ShapeDtypeStruct, ...]:
        return (example_video(self.config, batch_size),)


ARCHITECTURES = {"videomae": Architecture(VideoMAEConfig, VideoMAE)}
