"""InternVideo2-CLIP: a video tower and a text tower whose embeddings are compared.

The big models read texts with a LLaMA, the small ones with MobileCLIP's text tower.
Source: upstream `models/internvideo2_clip.py` and `internvideo2_clip_small.py` of
`InternVideo2/multi_modality`.
"""

import dataclasses
import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from internvideo_jax.config import CheckedConfig, PositiveFactor, Width
from internvideo_jax.models.architecture import Architecture, Tower
from internvideo_jax.models.clip_text import ClipText, ClipTextConfig, mobileclip_b_text
from internvideo_jax.models.dual_encoder import DualEncoder, Embedded
from internvideo_jax.models.llama_text import LlamaText, LlamaTextConfig, internvl_c_text
from internvideo_jax.models.video_vit import (
    VideoViT,
    VideoViTConfig,
    internvideo2_1b,
    internvideo2_6b,
    internvideo2_b14,
    internvideo2_l14,
    internvideo2_s14,
)
from internvideo_jax.nn.clipping import clip_passing_gradient
from internvideo_jax.nn.linear import dense, torch_uniform
from internvideo_jax.nn.normalization import layer_norm
from internvideo_jax.nn.partitioning import with_axes


@dataclasses.dataclass(frozen=True)
class InternVideo2ClipConfig(CheckedConfig):
    """The towers and what joins them; `internvideo2_clip_1b()` and its siblings are the released.

    Attributes:
      vision: the video tower.
      text: the text tower.
      align_dim: size that pooled clips are projected to before they are compared with texts; None
        compares them as they are.
      initial_temperature: what similarities are divided by at the start of training.
      min_temperature: the least that they are divided by.
    """

    vision: VideoViTConfig
    text: LlamaTextConfig | ClipTextConfig
    align_dim: Width | None = None
    initial_temperature: PositiveFactor = 0.01
    min_temperature: PositiveFactor = 0.01

    def __post_init__(self) -> None:
        super().__post_init__()
        size = self.align_dim or self.vision.pooled_dim
        if size != self.text.projection_dim:
            raise ValueError(
                f"expected towers with embeddings of one size, found {size} of clips and"
                f" {self.text.projection_dim} of texts; change align_dim or text.projection_dim"
            )


def _vision(encoder: VideoViTConfig, drop_path_rate: float = 0.0) -> VideoViTConfig:
    return dataclasses.replace(
        encoder, layer_scale_init=0.1, drop_path_rate=drop_path_rate, image_positions="mean"
    )


def internvideo2_clip_1b() -> InternVideo2ClipConfig:
    """InternVideo2-CLIP 1B, whose texts may be English or Chinese."""
    return InternVideo2ClipConfig(_vision(internvideo2_1b(), 0.3), internvl_c_text())


def internvideo2_clip_6b() -> InternVideo2ClipConfig:
    """InternVideo2-CLIP 6B, whose texts may be English or Chinese."""
    return InternVideo2ClipConfig(_vision(internvideo2_6b(), 0.35), internvl_c_text())


def _small(encoder: VideoViTConfig) -> InternVideo2ClipConfig:
    return InternVideo2ClipConfig(_vision(encoder), mobileclip_b_text(), align_dim=512)


def internvideo2_clip_s14() -> InternVideo2ClipConfig:
    """InternVideo2-CLIP S/14 (87 M parameters), for English texts."""
    return _small(internvideo2_s14())


def internvideo2_clip_b14() -> InternVideo2ClipConfig:
    """InternVideo2-CLIP B/14 (153 M parameters), for English texts."""
    return _small(internvideo2_b14())


def internvideo2_clip_l14() -> InternVideo2ClipConfig:
    """InternVideo2-CLIP L/14 (373 M parameters), for English texts."""
    return _small(internvideo2_l14())


class Alignment(nn.Module):
    """A LayerNorm and a linear map, from pooled clips `[B, P]` to embeddings `[B, C]`."""

    features: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, pooled: jax.Array) -> jax.Array:
        project = dense(
            self.features,
            ("embed", "pooled"),
            self.dtype,
            "proj",
            kernel_init=torch_uniform(pooled.shape[-1]),
        )
        return jnp.asarray(project(layer_norm(1e-5, self.dtype, "norm")(pooled)))


class InternVideo2Clip(DualEncoder):
    """The towers and the temperature."""

    config: InternVideo2ClipConfig

    def setup(self) -> None:
        c = self.config
        self.vision = VideoViT(c.vision)
        self.text = _text_class(c.text)(c.text)
        if c.align_dim is not None:
            self.vision_align = Alignment(c.align_dim, jnp.dtype(c.vision.dtype))
        start = with_axes(nn.initializers.constant(c.initial_temperature), ())
        self.temperature = self.param("temperature", start, (), jnp.float32)

    def encode_video(
        self, video: jax.Array, kept: jax.Array | None = None, *, deterministic: bool = True
    ) -> Embedded:
        encoded = self.vision(video, kept, deterministic=deterministic)
        is_aligned = self.config.align_dim is not None
        embedding = self.vision_align(encoded.pooled) if is_aligned else encoded.pooled
        return Embedded(encoded.tokens, embedding)

    def encode_text(
        self, ids: jax.Array, mask: jax.Array | None = None, *, deterministic: bool = True
    ) -> Embedded:
        """Encodes texts.

        Args:
          ids: `[B, L]` of the model's tokenizer, padded on the right.
          mask: not needed: ids tell where a text ends.
          deterministic: False turns the adapters' dropout on (needs the `dropout` RNG).
        """
        encoded = self.text(ids, deterministic=deterministic)
        return Embedded(encoded.tokens, encoded.pooled)

    def bounded_temperature(self) -> jax.Array:
        """What cosines are divided by, float32 []: the parameter, or the least there may be."""
        return clip_passing_gradient(self.temperature, self.config.min_temperature, math.inf)

    @property
    def max_text_length(self) -> int | None:
        c = self.config.text
        is_bounded = isinstance(c, ClipTextConfig) and c.other_lengths == "first"
        return c.max_length if is_bounded else None

    def video_tower(self) -> tuple[Tower, tuple[str, ...]]:
        return VideoViT(self.config.vision, parent=None), ("vision",)

    def text_tower(self) -> tuple[Tower, tuple[str, ...]]:
        text = self.config.text
        return _text_class(text)(text, parent=None), ("text",)

    def example_inputs(self, batch_size: int = 1) -> tuple[jax.ShapeDtypeStruct, ...]:
        """Shapes of clips and ids."""
        towers = self.video_tower(), self.text_tower()
        return tuple(x for tower, _ in towers for x in tower.example_inputs(batch_size))

    def is_decayed(self, path: str) -> bool:
        """Whether weight decay applies: to matrices, but not to the text tower's."""
        part, _, _ = path.partition("/")
        return part not in ("text", "temperature") and super().is_decayed(path)


def _text_class(config: LlamaTextConfig | ClipTextConfig) -> type[Tower]:
    return LlamaText if isinstance(config, LlamaTextConfig) else ClipText


ARCHITECTURES = {"internvideo2_clip": Architecture(InternVideo2ClipConfig, InternVideo2Clip)}
