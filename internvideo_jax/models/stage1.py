"""Stage-1 students: the video encoder on kept tokens, with decoders to the teachers' features.

Source: upstream `models/internvideo2_pretrain.py` and `models/internvideo2_distill.py`. The
modules return what the losses need; the losses are in `objectives.distillation`.
"""

import dataclasses
from typing import Literal

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from internvideo_jax.models.architecture import Architecture
from internvideo_jax.models.video_vit import (
    EncoderModel,
    VideoViT,
    VideoViTConfig,
    example_video,
    position_table,
    take_tokens,
    token_grid,
)
from internvideo_jax.nn.linear import dense
from internvideo_jax.nn.normalization import l2_normalize, layer_norm

DecoderKind = Literal["linear", "mlp"]
Normalization = Literal["l2", "none"]


def aligned_layers(depth: int, count: int, interval: float = 1) -> tuple[int, ...]:
    """The `count` block indices, ascending, that step back from the last block by `interval`.

    Source: `{depth - int(i * interval) - 1 : i < count}` of the upstream students and teachers.
    """
    return tuple(sorted({depth - int(i * interval) - 1 for i in range(count)}))


@dataclasses.dataclass(frozen=True)
class Stage1StudentConfig:
    """A pre-training student.

    Attributes:
      encoder: the video encoder.
      clip_layers: ascending blocks aligned with the CLIP-side teacher.
      mae_layers: ascending blocks aligned with the MAE-side teacher.
      clip_target_dim: width of the CLIP-side teacher.
      clip_final_dim: width of its pooled feature; 0 leaves the final decoder out.
      mae_target_dim: width of the MAE-side teacher.
      normalization: whether the decoders' outputs are divided by their length.
    """

    encoder: VideoViTConfig
    clip_layers: tuple[int, ...]
    mae_layers: tuple[int, ...]
    clip_target_dim: int = 3200
    clip_final_dim: int = 768
    mae_target_dim: int = 1408
    normalization: Normalization = "l2"


@dataclasses.dataclass(frozen=True)
class DistillStudentConfig:
    """A distillation student, with one video teacher.

    Attributes:
      encoder: the video encoder.
      clip_layers: ascending blocks aligned with the teacher.
      clip_target_dim: width of the teacher.
      clip_final_dim: width of its pooled feature; 0 leaves the final decoder out.
      decoder: class of all decoders.
      normalization: whether the decoders' outputs are divided by their length.
    """

    encoder: VideoViTConfig
    clip_layers: tuple[int, ...]
    clip_target_dim: int = 1408
    clip_final_dim: int = 768
    decoder: DecoderKind = "mlp"
    normalization: Normalization = "l2"


def stage1_student(encoder: VideoViTConfig) -> Stage1StudentConfig:
    """The released pre-training set-up: last 6 blocks for InternVL-6B, last 4 for VideoMAEv2-g."""
    return Stage1StudentConfig(
        encoder,
        clip_layers=aligned_layers(encoder.depth, 6),
        mae_layers=aligned_layers(encoder.depth, 4),
    )


def distill_student(encoder: VideoViTConfig) -> DistillStudentConfig:
    """The released distillation set-up: last 6 blocks follow six blocks of the 1B teacher."""
    return DistillStudentConfig(encoder, clip_layers=aligned_layers(encoder.depth, 6))


@flax.struct.dataclass
class StudentOutput:
    """What the alignment losses need of a student.

    Attributes:
      clip_middle: decoded tokens of the aligned blocks `[K, B, N, E]`, class token first.
      clip_final: decoded pooled feature `[B, P]` (the raw pooled feature without final decoder).
      mae: decoded patch tokens `[Km, B, N - 1, E']`, or None.
      pooled: pooled feature `[B, 768]` before its decoder.
    """

    clip_middle: jax.Array
    clip_final: jax.Array
    mae: jax.Array | None
    pooled: jax.Array


class Decoder(nn.Module):
    """Projects tokens to a teacher's width: linear or two-layer, LayerNorm, then unit length."""

    kind: DecoderKind
    out_dim: int
    normalization: Normalization = "l2"
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        if self.kind == "mlp":
            x = jax.nn.gelu(
                dense(x.shape[-1], ("embed", "mlp"), self.dtype, "fc1")(x), approximate=False
            )
            x = dense(self.out_dim, ("mlp", "target"), self.dtype, "fc2")(x)
        else:
            x = dense(self.out_dim, ("embed", "target"), self.dtype, "head")(x)
        x = layer_norm(1e-5, self.dtype, "norm")(x)
        return l2_normalize(x).astype(self.dtype) if self.normalization == "l2" else x


def _layer_decoders(
    x: jax.Array, kind: DecoderKind, out_dim: int, normalization: Normalization, name: str
) -> jax.Array:
    """One decoder per aligned layer, `[K, B, N, D] -> [K, B, N, out_dim]`, parameters stacked."""
    stacked = nn.vmap(
        Decoder,
        variable_axes={"params": 0},
        split_rngs={"params": True},
        axis_size=x.shape[0],
        metadata_params={nn.PARTITION_NAME: "decoders"},
    )
    return stacked(kind, out_dim, normalization, x.dtype, name=name)(x)


class Stage1Student(EncoderModel):
    """Pre-training student: linear decoders to the CLIP-side teacher, MLP ones to the MAE side."""

    config: Stage1StudentConfig

    @nn.compact
    def __call__(
        self, video: jax.Array, kept: jax.Array, *, deterministic: bool = True
    ) -> StudentOutput:
        """Encodes the kept tokens and decodes the aligned layers.

        Args:
          video: `[B, T, H, W, 3]` float, normalised.
          kept: `[B, K]` ascending indices of the kept tokens; column 0 is 0, the class token.
          deterministic: False turns drop path on (needs the `dropout` RNG).
        """
        c = self.config
        layers = tuple(sorted({*c.clip_layers, *c.mae_layers}))
        encoded = VideoViT(c.encoder, name="encoder")(
            video, kept, hidden_layers=layers, deterministic=deterministic
        )
        grid = token_grid(video.shape[1:4], c.encoder.tubelet_size, c.encoder.patch_size)
        hidden = encoded.hidden_states

        clip = hidden[jnp.array([layers.index(i) for i in c.clip_layers])]
        table = position_table(self, c.encoder, grid, prefix="clip_").astype(hidden.dtype)
        clip = _layer_decoders(
            clip + take_tokens(table, kept),
            "linear",
            c.clip_target_dim,
            c.normalization,
            "clip_decoder",
        )
        final = _final_decoder(encoded.pooled, "linear", c.clip_final_dim, c.normalization)

        mae = hidden[jnp.array([layers.index(i) for i in c.mae_layers])][:, :, 1:]
        table = position_table(self, c.encoder, grid, prefix="mae_", cls_token=False)
        mae = _layer_decoders(
            mae + take_tokens(table.astype(hidden.dtype), kept[:, 1:] - 1),
            "mlp",
            c.mae_target_dim,
            c.normalization,
            "mae_decoder",
        )
        return StudentOutput(clip, final, mae, encoded.pooled)

    def example_inputs(self, batch_size: int = 1) -> tuple[jax.ShapeDtypeStruct, ...]:
        """Shapes of the positional inputs of a call at the recipes' mask ratio of 0.8."""
        t, h, w = self.config.encoder.grid
        return _student_inputs(self.config.encoder, batch_size, t * (h * w - int(0.8 * h * w)))

    def flops(self, num_kept: int | None = None) -> dict[str, int]:
        c, tokens = self.config, num_kept or self.config.encoder.num_tokens
        decoder = _decoder_flops("mlp", tokens - 1, c.encoder.width, c.mae_target_dim)
        return (
            super().flops(num_kept)
            | _clip_decoder_flops(c, "linear", tokens)
            | {"mae_decoder": len(c.mae_layers) * decoder}
        )


class DistillStudent(EncoderModel):
    """Distillation student: decoders of one class for the teacher's tokens and pooled feature."""

    config: DistillStudentConfig

    @nn.compact
    def __call__(
        self, video: jax.Array, kept: jax.Array, *, deterministic: bool = True
    ) -> StudentOutput:
        """As `Stage1Student.__call__`, without the MAE branch."""
        c = self.config
        encoded = VideoViT(c.encoder, name="encoder")(
            video, kept, hidden_layers=c.clip_layers, deterministic=deterministic
        )
        grid = token_grid(video.shape[1:4], c.encoder.tubelet_size, c.encoder.patch_size)
        hidden = encoded.hidden_states
        table = position_table(self, c.encoder, grid, prefix="clip_").astype(hidden.dtype)
        clip = _layer_decoders(
            hidden + take_tokens(table, kept),
            c.decoder,
            c.clip_target_dim,
            c.normalization,
            "clip_decoder",
        )
        final = _final_decoder(encoded.pooled, c.decoder, c.clip_final_dim, c.normalization)
        return StudentOutput(clip, final, None, encoded.pooled)

    def example_inputs(self, batch_size: int = 1) -> tuple[jax.ShapeDtypeStruct, ...]:
        """Shapes of the positional inputs of a call at the recipes' mask ratio of 0.8."""
        t, h, w = self.config.encoder.grid
        return _student_inputs(self.config.encoder, batch_size, t * h * w - int(0.8 * t * h * w))

    def flops(self, num_kept: int | None = None) -> dict[str, int]:
        c, tokens = self.config, num_kept or self.config.encoder.num_tokens
        return super().flops(num_kept) | _clip_decoder_flops(c, c.decoder, tokens)


def _final_decoder(
    pooled: jax.Array, kind: DecoderKind, out_dim: int, normalization: Normalization
) -> jax.Array:
    if out_dim == 0:
        return pooled
    return Decoder(kind, out_dim, normalization, pooled.dtype, name="final_clip_decoder")(pooled)


def _student_inputs(
    encoder: VideoViTConfig, batch_size: int, kept: int
) -> tuple[jax.ShapeDtypeStruct, ...]:
    indices = jax.ShapeDtypeStruct((batch_size, 1 + kept), jnp.int32)
    return example_video(encoder, batch_size), indices


def _clip_decoder_flops(
    c: Stage1StudentConfig | DistillStudentConfig, kind: DecoderKind, tokens: int
) -> dict[str, int]:
    middle = _decoder_flops(kind, tokens, c.encoder.width, c.clip_target_dim)
    final = _decoder_flops(kind, 1, c.encoder.pooled_dim, c.clip_final_dim)
    return {
        "clip_decoder": len(c.clip_layers) * middle,
        "final_clip_decoder": final if c.clip_final_dim else 0,
    }


def _decoder_flops(kind: DecoderKind, rows: int, width: int, out_dim: int) -> int:
    hidden = width * width if kind == "mlp" else 0
    return 2 * rows * (hidden + width * out_dim)


ARCHITECTURES = {
    "stage1_student": Architecture(Stage1StudentConfig, Stage1Student),
    "distill_student": Architecture(DistillStudentConfig, DistillStudent),
}
