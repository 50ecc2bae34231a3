"""Video classifiers: the encoder with a linear, an attentive-probe or a concatenation head.

Source: upstream `models/internvideo2.py` (linear), `internvideo2_ap.py` (attentive) and
`internvideo2_cat.py` (concat) of `InternVideo2/single_modality`.
"""

import dataclasses
from typing import Literal

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from internvideo_jax.config import CheckedConfig, Factor, Rate, Size
from internvideo_jax.models.architecture import Architecture
from internvideo_jax.models.video_vit import EncoderModel, VideoViT, VideoViTConfig, token_grid
from internvideo_jax.nn.linear import dense
from internvideo_jax.nn.mlp import Mlp
from internvideo_jax.nn.normalization import BatchNorm, layer_norm

MergeMethod = Literal["cls_avg1", "cls_avgN", "cls_avg1_proj", "cls_avgN_proj"]
MergeNorm = Literal["kaiming_bn", "bn", "ln"]


@dataclasses.dataclass(frozen=True)
class VideoClassifierConfig(CheckedConfig):
    """A video classifier.

    Attributes:
      encoder: the video encoder.
      num_classes: C, size of the logits.
      head: "linear" on the pooled feature; "attentive" adds a residual MLP before it (VideoGLUE's
        attentive probe); "concat" reads class token and averaged tokens (linear probe).
      merge_method: what "concat" reads: the class token with the mean of all patch tokens (avg1) or
        with one mean per time step (avgN), and whether the pooled feature follows (proj).
      merge_norm: norm of those rows; "kaiming_bn" is batch norm without affine parameters.
      dropout_rate: dropout before the last linear layer.
      head_init_scale: factor on the initial weights and bias of the last layer.
    """

    encoder: VideoViTConfig
    num_classes: Size
    head: Literal["linear", "attentive", "concat"] = "linear"
    merge_method: MergeMethod = "cls_avg1"
    merge_norm: MergeNorm = "kaiming_bn"
    dropout_rate: Rate = 0.0
    head_init_scale: Factor = 0.001


@flax.struct.dataclass
class VideoClassifierOutput:
    """Logits `[B, C]` float32, the head's input `[B, F]` and the encoder's pooled `[B, P]`."""

    logits: jax.Array
    features: jax.Array
    pooled: jax.Array


class VideoClassifier(EncoderModel):
    """Encoder and head; batch statistics of "concat" heads live in collection `batch_stats`."""

    config: VideoClassifierConfig

    @nn.compact
    def __call__(self, video: jax.Array, *, deterministic: bool = True) -> VideoClassifierOutput:
        """Classifies normalised clips `[B, T, H, W, 3]`.

        Args:
          video: the clips.
          deterministic: False turns on drop path and dropout (RNG `dropout`) and batch statistics
            (collection `batch_stats` mutable).
        """
        c = self.config
        dtype = jnp.dtype(c.encoder.dtype)
        encoded = VideoViT(c.encoder, name="encoder")(video, deterministic=deterministic)
        pooled = encoded.pooled
        if c.head == "attentive":
            extra = layer_norm(1e-5, dtype, "extra_norm")(pooled)
            # The second layer starts from zero, so that the probe starts as a linear one.
            pooled = pooled + Mlp(
                4 * pooled.shape[-1],
                pooled.shape[-1],
                dtype=dtype,
                out_kernel_init=nn.initializers.zeros,
                in_axis="pooled",
                out_axis="pooled",
                name="extra_mlp",
            )(extra)
        features = layer_norm(1e-5, dtype, "fc_norm")(pooled)
        if c.head == "concat":
            grid = token_grid(video.shape[1:4], c.encoder.tubelet_size, c.encoder.patch_size)
            merged = self._merge(encoded.tokens, grid, deterministic)
            use_pooled = c.merge_method.endswith("_proj")
            features = jnp.concatenate([merged, features], -1) if use_pooled else merged
        dropped = nn.Dropout(c.dropout_rate, deterministic=deterministic)(features)

        def scaled_normal(key: jax.Array, shape: tuple[int, ...], dtype: jnp.dtype) -> jax.Array:
            return c.head_init_scale * nn.initializers.normal(0.02)(key, shape, dtype)

        head = dense(
            c.num_classes, ("pooled", "vocab"), jnp.float32, "head", kernel_init=scaled_normal
        )
        return VideoClassifierOutput(head(dropped.astype(jnp.float32)), features, encoded.pooled)

    def _merge(
        self, tokens: jax.Array, grid: tuple[int, int, int], deterministic: bool
    ) -> jax.Array:
        """Class token and averaged patch tokens of `[B, N, D]`, normalised and flattened."""
        c = self.config
        cls, patches = tokens[:, :1], tokens[:, 1:]
        batch, _, width = tokens.shape
        if c.merge_method.startswith("cls_avgN"):
            rows = jnp.concatenate([cls, patches.reshape(batch, grid[0], -1, width).mean(2)], 1)
            down = dense(c.encoder.pooled_dim, ("embed", "pooled"), rows.dtype, "down")
            rows = jax.nn.gelu(down(rows), approximate=False)
        else:
            rows = jnp.concatenate([cls, patches.mean(1, keepdims=True)], axis=1)
        if c.merge_norm == "ln":
            return layer_norm(1e-5, rows.dtype, "down_norm")(rows).reshape(batch, -1)
        affine = c.merge_norm == "bn"
        norm = BatchNorm(1e-5 if affine else 1e-6, affine, dtype=rows.dtype, name="down_norm")
        rows = norm(rows, use_running_average=deterministic)
        # Upstream's batch norm sees [B, C, rows], so its flattened features are channel-major.
        return rows.swapaxes(1, 2).reshape(batch, -1)


ARCHITECTURES = {"video_classifier": Architecture(VideoClassifierConfig, VideoClassifier)}
