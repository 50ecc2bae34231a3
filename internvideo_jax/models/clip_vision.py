"""ViCLIP's video tower: a CLIP ViT whose tokens attend to those of all frames.

Source: upstream `InternVideo1/Pretrain/ViCLIP/models/backbones/clip/clip_vision.py`.
"""

import dataclasses
from typing import ClassVar

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from internvideo_jax.config import Rate, Width
from internvideo_jax.models.architecture import Architecture, Tower
from internvideo_jax.models.video_vit import (
    PatchedVideoConfig,
    PatchEmbed,
    example_video,
    take_tokens,
    token_grid,
)
from internvideo_jax.nn.blocks import PreNormBlock
from internvideo_jax.nn.mlp import Activation
from internvideo_jax.nn.normalization import layer_norm
from internvideo_jax.nn.partitioning import Initializer, with_axes
from internvideo_jax.nn.position_embedding import Array, fit_positions, resize_position_table
from internvideo_jax.nn.stack import stack


@dataclasses.dataclass(frozen=True)
class ClipVisionConfig(PatchedVideoConfig):
    """Dimensions and options of a CLIP ViT over clips.

    Attributes:
      projection_dim: P, the size of a clip's embedding.
      activation: of the MLPs.
      temporal_positions: whether frames have positions of their own; without, their order is not
        seen.
      drop_path_rate: stochastic depth of the last block.
    """

    layer_scale_init: None = None
    projection_dim: Width = 512
    activation: Activation = "gelu_quick"
    temporal_positions: bool = True
    drop_path_rate: Rate = 0.0

    norm: ClassVar = "layernorm"
    norm_epsilon: ClassVar = 1e-5
    qkv_bias: ClassVar = True
    qk_norm: ClassVar = False

    @property
    def least_parameters(self) -> int:
        t, h, w = self.grid
        return super().least_parameters + (t * self.temporal_positions + h * w) * self.width

    @property
    def num_tokens(self) -> int:
        """Tokens of a full clip, class token included."""
        t, h, w = self.grid
        return 1 + t * h * w


def clip_b16_vision() -> ClipVisionConfig:
    """The video tower of ViCLIP-B/16."""
    return ClipVisionConfig(
        width=768, depth=12, num_heads=12, mlp_dim=3072, patch_size=16, projection_dim=512
    )


def clip_l14_vision() -> ClipVisionConfig:
    """The video tower of ViCLIP-L/14."""
    return ClipVisionConfig(
        width=1024, depth=24, num_heads=16, mlp_dim=4096, patch_size=14, projection_dim=768
    )


@flax.struct.dataclass
class ClipVisionOutput:
    """What the tower returns.

    Attributes:
      tokens: the last block's output, normalised, `[B, N, D]`, class token first, time before
        place.
      pooled: the clip's embedding `[B, P]`, not normalised.
      embedded: what the first norm read, `[B, N, D]`.
      hidden_states: outputs of the wanted blocks `[K, B, N, D]`; K may be 0.
    """

    tokens: jax.Array
    pooled: jax.Array
    embedded: jax.Array
    hidden_states: jax.Array


def fit_temporal_positions(table: Array, frames: int) -> Array:
    """Positions of so many frames: of an image, their mean; else those of `fit_positions`.

    Args:
      table: `[1, T, D]`.
      frames: T' of the input.

    Returns:
      `[1, T', D]` in the table's dtype.
    """
    if frames == 1:
        return table.mean(1, keepdims=True, dtype=np.float32).astype(table.dtype)
    return fit_positions(table, frames)


class ClipVision(Tower):
    """Patches, class token, positions, norm, pre-norm blocks, norm; the class token is projected.

    Every token attends to those of all frames. The class token has a place but no time.
    """

    config: ClipVisionConfig

    input_parts = (
        *("patch_embed", "cls_token", "norm_pre"),
        *("pos_embed_spatial", "pos_embed_temporal"),
    )

    @nn.compact
    def __call__(
        self,
        video: jax.Array,
        kept: jax.Array | None = None,
        *,
        hidden_layers: tuple[int, ...] = (),
        deterministic: bool = True,
    ) -> ClipVisionOutput:
        """Encodes normalised clips; images are clips of one frame.

        Args:
          video: `[B, T, H, W, 3]` float, normalised. Positions are fitted to another grid than the
            config's: in space by bicubic interpolation, in time by `fit_temporal_positions`.
          kept: `[B, K]` ascending indices of the tokens to keep, 0 being the class token, which
            must be among them; None keeps all.
          hidden_layers: ascending indices of the blocks whose outputs are wanted.
          deterministic: False turns drop path on (needs the `dropout` RNG).

        Raises:
          ValueError: the patches do not cover the clip, or bad `hidden_layers`.
        """
        c = self.config
        dtype = jnp.dtype(c.dtype)
        if video.ndim != 5:
            raise ValueError(
                f"expected a batch of clips [B, T, H, W, 3], found shape {video.shape};"
                " add a leading axis for a single clip"
            )
        grid = token_grid(video.shape[1:4], c.tubelet_size, c.patch_size)
        embed = PatchEmbed(
            c.width, c.tubelet_size, c.patch_size, dtype, use_bias=False, name="patch_embed"
        )
        cls_token, positions = self._tables(grid)
        cls_token = jnp.broadcast_to(cls_token.astype(dtype), (video.shape[0], 1, c.width))
        embedded = jnp.concatenate([cls_token, embed(video) + positions.astype(dtype)], axis=1)
        if kept is not None:
            embedded = take_tokens(embedded, kept)
        x = layer_norm(c.norm_epsilon, dtype, "norm_pre")(embedded)
        x, hidden_states, _ = stack(
            PreNormBlock,
            c,
            x,
            depth=c.depth,
            remat=c.remat,
            hidden_layers=hidden_layers,
            drop_path_rate=c.drop_path_rate,
            deterministic=deterministic,
        )
        tokens = layer_norm(c.norm_epsilon, dtype, "norm")(x)
        init = with_axes(_scaled_normal(c.width), ("embed", "pooled"))
        projection = self.param("projection", init, (c.width, c.projection_dim), jnp.float32)
        pooled = tokens[:, 0] @ projection.astype(dtype)
        return ClipVisionOutput(tokens, pooled, embedded, hidden_states)

    def _tables(self, grid: tuple[int, int, int]) -> tuple[jax.Array, jax.Array]:
        """The class token with its position `[1, 1, D]`, and those of patches `[1, N - 1, D]`."""
        c = self.config
        t, h, w = c.grid
        axes = (None, "position", "embed")
        normal = _scaled_normal(c.width)
        cls_init = with_axes(normal, (None, None, "embed"))
        cls_token = self.param("cls_token", cls_init, (1, 1, c.width), jnp.float32)
        spatial = self.param(
            "pos_embed_spatial", with_axes(normal, axes), (1, 1 + h * w, c.width), jnp.float32
        )
        spatial = resize_position_table(spatial, (1, h, w), (1, *grid[1:]), num_extra=1)
        positions = spatial[:, None, 1:]
        if c.temporal_positions:
            zeros = with_axes(nn.initializers.zeros, axes)
            table = self.param("pos_embed_temporal", zeros, (1, t, c.width), jnp.float32)
            positions = positions + fit_temporal_positions(table, grid[0])[:, :, None]
        else:
            positions = jnp.repeat(positions, grid[0], axis=1)
        return cls_token + spatial[:, :1], positions.reshape(1, -1, c.width)

    def video_tower(self) -> tuple[Tower, tuple[str, ...]]:
        return self, ()

    def example_inputs(self, batch_size: int = 1) -> tuple[jax.ShapeDtypeStruct, ...]:
        return (example_video(self.config, batch_size),)

    def is_decayed(self, path: str) -> bool:
        """Whether weight decay applies: to all matrices."""
        return path == "projection" or super().is_decayed(path)


def _scaled_normal(width: int) -> Initializer:
    """What CLIP's tables and projections start from."""
    return nn.initializers.normal(width**-0.5)


ARCHITECTURES = {"clip_vision": Architecture(ClipVisionConfig, ClipVision)}
