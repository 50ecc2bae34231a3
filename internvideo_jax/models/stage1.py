"""Stage-1 students: the video encoder on kept tokens, with decoders to the teachers' features.

Source: upstream `models/internvideo2_pretrain.py` and `models/internvideo2_distill.py`. The
modules return what the losses need; the losses are in `objectives.distillation`.
"""

import dataclasses
from typing import Annotated, ClassVar, Literal

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from internvideo_jax.config import Blocks, CheckedConfig, Range
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
# 0 stands for a decoder that is not there.
TargetWidth = Annotated[int, Range(0, 2**16)]


def aligned_layers(depth: int, count: int, interval: float = 1) -> tuple[int, ...]:
    """The `count` block indices, ascending, that step back from the last block by `interval`.

    Source: `{depth - int(i * interval) - 1 : i < count}` of the upstream students and teachers.
    """
    return tuple(sorted({depth - int(i * interval) - 1 for i in range(count)}))


def check_layers(name: str, layers: tuple[int, ...], depth: int) -> None:
    """Raises a `ValueError` unless `layers` are distinct, ascending blocks of a stack."""
    if list(layers) != sorted({i for i in layers if i < depth}):
        raise ValueError(
            f"expected {name} to be distinct, ascending blocks below {depth}, found {layers}"
        )


@dataclasses.dataclass(frozen=True)
class Stage1StudentConfig(CheckedConfig):
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
    clip_layers: tuple[Blocks, ...]
    mae_layers: tuple[Blocks, ...]
    clip_target_dim: TargetWidth = 3200
    clip_final_dim: TargetWidth = 768
    mae_target_dim: TargetWidth = 1408
    normalization: Normalization = "l2"

    decoder: ClassVar[DecoderKind] = "linear"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_layers("clip_layers", self.clip_layers, self.encoder.depth)
        check_layers("mae_layers", self.mae_layers, self.encoder.depth)


@dataclasses.dataclass(frozen=True)
class DistillStudentConfig(CheckedConfig):
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
    clip_layers: tuple[Blocks, ...]
    clip_target_dim: TargetWidth = 1408
    clip_final_dim: TargetWidth = 768
    decoder: DecoderKind = "mlp"
    normalization: Normalization = "l2"

    mae_layers: ClassVar[tuple[int, ...]] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        check_layers("clip_layers", self.clip_layers, self.encoder.depth)


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
      tokens: last block's output `[B, N, D]`, class token first.
    """

    clip_middle: jax.Array
    clip_final: jax.Array
    mae: jax.Array | None
    pooled: jax.Array
    tokens: jax.Array


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


class _Student(EncoderModel):
    """The video encoder on kept tokens, and decoders of its layers and its pooled feature."""

    @nn.compact
    def __call__(
        self, video: jax.Array, kept: jax.Array | None = None, *, deterministic: bool = True
    ) -> StudentOutput:
        """Encodes the kept tokens and decodes the aligned layers.

        Args:
          video: `[B, T, H, W, 3]` float, normalised.
          kept: `[B, K]` ascending indices of the kept tokens; column 0 is 0, the class token. None
            keeps all.
          deterministic: False turns drop path on (needs the `dropout` RNG).
        """
        c = self.config
        layers = tuple(sorted({*c.clip_layers, *c.mae_layers}))
        encoded = VideoViT(c.encoder, name="encoder")(
            video, kept, hidden_layers=layers, deterministic=deterministic
        )
        grid = token_grid(video.shape[1:4], c.encoder.tubelet_size, c.encoder.patch_size)
        hidden = encoded.hidden_states

        def aligned(wanted: tuple[int, ...]) -> jax.Array:
            if wanted == layers:
                return hidden
            return hidden[jnp.array([layers.index(i) for i in wanted], int)]

        def positions(prefix: str, cls_token: bool) -> jax.Array:
            table = position_table(self, c.encoder, grid, prefix=prefix, cls_token=cls_token)
            table = table.astype(hidden.dtype)
            if kept is None:
                return table
            return take_tokens(table, kept if cls_token else kept[:, 1:] - 1)

        def decoded(x: jax.Array, kind: DecoderKind, out_dim: int, name: str) -> jax.Array:
            """One decoder per layer, `[K, B, N, D] -> [K, B, N, out_dim]`, parameters stacked."""
            decoder = nn.vmap(
                Decoder,
                variable_axes={"params": 0},
                split_rngs={"params": True},
                axis_size=x.shape[0],
                metadata_params={nn.PARTITION_NAME: "decoders"},
            )
            return jnp.asarray(decoder(kind, out_dim, c.normalization, x.dtype, name=name)(x))

        clip = aligned(c.clip_layers)
        if c.clip_layers:
            clip = clip + positions("clip_", cls_token=True)
            clip = decoded(clip, c.decoder, c.clip_target_dim, "clip_decoder")
        final = encoded.pooled
        if c.clip_final_dim:
            final = Decoder(
                c.decoder, c.clip_final_dim, c.normalization, final.dtype, name="final_clip_decoder"
            )(final)
        mae = None
        if c.mae_layers:
            rows = aligned(c.mae_layers)[:, :, 1:]
            rows = rows + positions("mae_", cls_token=False)
            mae = decoded(rows, "mlp", c.mae_target_dim, "mae_decoder")
        return StudentOutput(clip, final, mae, encoded.pooled, encoded.tokens)

    def num_masked(self) -> int:
        """Tokens of an example that are masked, at the recipes' ratio of 0.8."""
        t, h, w = self.config.encoder.grid
        return int(0.8 * t * h * w)

    def example_inputs(self, batch_size: int = 1) -> tuple[jax.ShapeDtypeStruct, ...]:
        """Shapes of clips and of the tokens that are kept of them."""
        encoder = self.config.encoder
        kept = (batch_size, encoder.num_tokens - self.num_masked())
        return example_video(encoder, batch_size), jax.ShapeDtypeStruct(kept, jnp.int32)


class Stage1Student(_Student):
    """Pre-training student: linear decoders to the CLIP-side teacher, MLP ones to the MAE side."""

    config: Stage1StudentConfig

    def num_masked(self) -> int:
        """As of a student, in each frame."""
        t, h, w = self.config.encoder.grid
        return t * int(0.8 * h * w)


class DistillStudent(_Student):
    """Distillation student: decoders of one class for the teacher's tokens and pooled feature."""

    config: DistillStudentConfig


ARCHITECTURES = {
    "stage1_student": Architecture(Stage1StudentConfig, Stage1Student),
    "distill_student": Architecture(DistillStudentConfig, DistillStudent),
}
