"""Frozen teachers of stage 1: InternVL-6B, InternVideo2 and VideoMAEv2-g.

Source: upstream `models/internvl_clip_vision.py`, `models/internvideo2_teacher.py` and
`models/videomae.py`. Upstream leaves the distillation teacher in train mode, so its features carry
stochastic depth; here teachers are always deterministic.
"""

import dataclasses
from typing import Literal

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from internvideo_jax.config import Blocks, CheckedConfig
from internvideo_jax.models.architecture import Architecture
from internvideo_jax.models.stage1 import Normalization, aligned_layers, check_layers
from internvideo_jax.models.video_vit import (
    EncoderModel,
    VideoViT,
    VideoViTConfig,
    VideoViTOutput,
    internvl_6b,
)
from internvideo_jax.models.videomae import VideoMAE, VideoMAEConfig, VideoMAEOutput, videomae_g14
from internvideo_jax.nn.normalization import l2_normalize

Quantization = Literal["none", "int8"]


@dataclasses.dataclass(frozen=True)
class TeacherConfig(CheckedConfig):
    """A video-ViT teacher.

    Attributes:
      encoder: the encoder; one with `num_frames=1` is an image tower.
      layers: ascending blocks whose outputs are targets.
      per_frame: encode each frame by itself and average class tokens and pooled features.
      normalization: whether targets are divided by their length.
      quantization: while it is a frozen teacher, what the blocks' linear layers multiply: int8
        values, in about half the time, once `internvideo-jax calibrate` has measured the teacher
        (docs/step_time.md); none: numbers in the compute dtype.
    """

    encoder: VideoViTConfig
    layers: tuple[Blocks, ...]
    per_frame: bool = False
    normalization: Normalization = "l2"
    quantization: Quantization = "none"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_layers("layers", self.layers, self.encoder.depth)


@dataclasses.dataclass(frozen=True)
class VideoMAETeacherConfig(CheckedConfig):
    """A VideoMAE teacher.

    Attributes:
      encoder: the encoder.
      layers: ascending blocks whose outputs are targets.
      normalization: whether targets are divided by their length.
    """

    encoder: VideoMAEConfig
    layers: tuple[Blocks, ...]
    normalization: Normalization = "l2"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_layers("layers", self.layers, self.encoder.depth)


def internvl_teacher() -> TeacherConfig:
    """InternVL-6B's last six blocks, the CLIP-side teacher of pre-training."""
    encoder = internvl_6b()
    return TeacherConfig(encoder, layers=aligned_layers(encoder.depth, 6), per_frame=True)


def internvideo2_teacher(encoder: VideoViTConfig) -> TeacherConfig:
    """Six blocks, 3.34 apart, of an InternVideo2 encoder: the teacher of distillation."""
    return TeacherConfig(encoder, layers=aligned_layers(encoder.depth, 6, 3.34))


def videomae_teacher() -> VideoMAETeacherConfig:
    """VideoMAEv2-g's last four blocks, the MAE-side teacher of pre-training."""
    encoder = videomae_g14()
    return VideoMAETeacherConfig(encoder, layers=aligned_layers(encoder.depth, 4))


@flax.struct.dataclass
class TeacherOutput:
    """Targets of a video-ViT teacher, float32.

    Attributes:
      middle: `[K, B, 1 + t*h*w, D]`, class token first.
      final: pooled feature `[B, P]`.
      attention: pooler attention over patch tokens, one row per frame `[B*t, h*w]` if `per_frame`,
        else one per clip `[B, t*h*w]`; rows sum to less than 1, the class token being left out.
    """

    middle: jax.Array
    final: jax.Array
    attention: jax.Array


class Teacher(EncoderModel):
    """Runs a video ViT on all tokens; returns targets and the pooler's attention.

    Examples and FLOPs of a per-frame teacher are those of one image.
    """

    config: TeacherConfig

    def __call__(self, video: jax.Array) -> TeacherOutput:
        """Targets for normalised clips `[B, T, H, W, 3]`."""
        encoded = self.encode(video)
        images = encoded.tokens.shape[0] // len(video)
        count = 1 + images * (encoded.tokens.shape[1] - 1)
        tokens = jnp.broadcast_to(jnp.arange(count), (len(video), count))
        middle, final = self.rows(encoded, tokens)
        assert encoded.pooler_attention is not None
        return TeacherOutput(middle, final, encoded.pooler_attention[:, 1:])

    @nn.compact
    def encode(self, video: jax.Array) -> VideoViTOutput:
        """The encoder's output on clips, or on their frames: target layers and attention."""
        c = self.config
        if c.per_frame:
            video = video.reshape(-1, 1, *video.shape[2:])
        encoder = VideoViT(c.encoder, name="encoder")
        return encoder(video, hidden_layers=c.layers, return_pooler_attention=True)

    @nn.nowrap
    def rows(self, encoded: VideoViTOutput, kept: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Targets at some tokens: only their rows are made float32 and normalised.

        Args:
          encoded: what `encode` gave.
          kept: indices of a clip's tokens `[B, R]`, class token first.

        Returns:
          Those of the layers `[K, B, R, D]`, and of the pooled feature `[B, P]`.
        """
        hidden = encoded.hidden_states
        layers, images, tokens, width = hidden.shape
        batch = len(kept)
        # Every image has a class token of its own.
        index = kept[:, 1:] - 1
        rows = index // (tokens - 1) * tokens + index % (tokens - 1) + 1
        hidden = hidden.reshape(layers, batch, images // batch * tokens, width)
        cls = hidden[:, :, ::tokens].astype(jnp.float32).mean(2)[:, :, None]
        middle = jnp.take_along_axis(hidden, rows[None, :, :, None], axis=2)
        middle = jnp.concatenate([cls, middle.astype(jnp.float32)], axis=2)
        final = encoded.pooled.astype(jnp.float32).reshape(batch, images // batch, -1).mean(1)
        if self.config.normalization == "l2":
            middle, final = l2_normalize(middle), l2_normalize(final)
        return middle, final


class VideoMAETeacher(EncoderModel):
    """Runs VideoMAE on all tokens and returns targets `[K, B, t*h*w, D]`, float32."""

    config: VideoMAETeacherConfig
    encoder_cls = VideoMAE

    def __call__(self, video: jax.Array, kept: jax.Array | None = None) -> jax.Array:
        """Targets for normalised clips `[B, T, H, W, 3]`; `kept` as in `VideoMAE.__call__`."""
        return self._targets(self.encode(video, kept).hidden_states)

    @nn.compact
    def encode(self, video: jax.Array, kept: jax.Array | None = None) -> VideoMAEOutput:
        """The encoder's output: the target layers."""
        c = self.config
        return VideoMAE(c.encoder, name="encoder")(video, kept, hidden_layers=c.layers)

    @nn.nowrap
    def rows(self, encoded: VideoMAEOutput, kept: jax.Array) -> tuple[jax.Array, None]:
        """As `Teacher.rows`, without class token and pooled feature: `[K, B, R - 1, D]`."""
        rows = kept[None, :, 1:, None] - 1
        return self._targets(jnp.take_along_axis(encoded.hidden_states, rows, axis=2)), None

    @nn.nowrap
    def _targets(self, hidden: jax.Array) -> jax.Array:
        hidden = hidden.astype(jnp.float32)
        return l2_normalize(hidden) if self.config.normalization == "l2" else hidden


ARCHITECTURES = {
    "teacher": Architecture(TeacherConfig, Teacher),
    "videomae_teacher": Architecture(VideoMAETeacherConfig, VideoMAETeacher),
}
