"""ViCLIP: CLIP whose image tower sees all frames of a clip at once.

Source: upstream `InternVideo1/Pretrain/ViCLIP/models/viclip.py`, and `Data/InternVid/viclip` for
inference.
"""

import dataclasses
import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from internvideo_jax.config import CheckedConfig, PositiveFactor
from internvideo_jax.models.architecture import Architecture, Tower
from internvideo_jax.models.clip_text import ClipText, ClipTextConfig, clip_b_text, clip_l_text
from internvideo_jax.models.clip_vision import (
    ClipVision,
    ClipVisionConfig,
    clip_b16_vision,
    clip_l14_vision,
)
from internvideo_jax.models.dual_encoder import DualEncoder, Embedded
from internvideo_jax.models.video_vit import inside
from internvideo_jax.nn.clipping import clip_passing_gradient
from internvideo_jax.nn.partitioning import with_axes


@dataclasses.dataclass(frozen=True)
class ViClipConfig(CheckedConfig):
    """Both towers, whose embeddings are of one size; see `viclip_b16()` and `viclip_l14()`.

    Attributes:
      vision: the video tower.
      text: the text tower.
      initial_temperature: what similarities are divided by at the start of training.
      min_temperature: what they are divided by at least.
    """

    vision: ClipVisionConfig
    text: ClipTextConfig
    initial_temperature: PositiveFactor = 0.01
    min_temperature: PositiveFactor = 0.01

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.vision.projection_dim != self.text.projection_dim:
            raise ValueError(
                "expected towers of one projection_dim, found"
                f" {self.vision.projection_dim} of the videos and {self.text.projection_dim} of"
                " the texts"
            )


def viclip_b16() -> ViClipConfig:
    """ViCLIP-B/16 (150 M parameters)."""
    return ViClipConfig(clip_b16_vision(), clip_b_text(max_length=32))


def viclip_l14() -> ViClipConfig:
    """ViCLIP-L/14 (428 M parameters)."""
    return ViClipConfig(clip_l14_vision(), clip_l_text(max_length=32))


class ViClip(DualEncoder):
    """A video and a text tower whose embeddings are compared by their cosines.

    In training most patches are dropped at random: draw what is kept with
    `training.masking.MaskConfig("random", 0.9)` and pass it to `encode_video`.
    """

    config: ViClipConfig

    def setup(self) -> None:
        c = self.config
        self.vision = ClipVision(c.vision)
        self.text = ClipText(c.text)
        start = with_axes(nn.initializers.constant(c.initial_temperature), ())
        self.temperature = self.param("temperature", start, (), jnp.float32)

    def encode_video(
        self, video: jax.Array, kept: jax.Array | None = None, *, deterministic: bool = True
    ) -> Embedded:
        encoded = self.vision(video, kept, deterministic=deterministic)
        return Embedded(encoded.tokens, encoded.pooled)

    def encode_text(
        self, ids: jax.Array, mask: jax.Array | None = None, *, deterministic: bool = True
    ) -> Embedded:
        """Encodes ids `[B, L]`; no `mask` is needed, a text ends where its largest id stands."""
        encoded = self.text(ids, deterministic=deterministic)
        return Embedded(encoded.tokens, encoded.pooled)

    def bounded_temperature(self) -> jax.Array:
        """What cosines are divided by, float32 []: the parameter, or its lower bound."""
        return clip_passing_gradient(self.temperature, self.config.min_temperature, math.inf)

    @property
    def max_text_length(self) -> int | None:
        c = self.config.text
        return c.max_length if c.other_lengths == "first" else None

    def video_tower(self) -> tuple[Tower, tuple[str, ...]] | None:
        return inside("vision", self._towers()["vision"])

    def text_tower(self) -> tuple[Tower, tuple[str, ...]]:
        return self._towers()["text"], ("text",)

    def example_inputs(self, batch_size: int = 1) -> tuple[jax.ShapeDtypeStruct, ...]:
        """Shapes of clips and ids."""
        return (
            *self._towers()["vision"].example_inputs(batch_size),
            *self._towers()["text"].example_inputs(batch_size),
        )

    def is_decayed(self, path: str) -> bool:
        """Whether weight decay applies: as in the towers; not to the temperature."""
        part, _, rest = path.partition("/")
        return part != "temperature" and self._towers()[part].is_decayed(rest)

    def _towers(self) -> dict[str, Tower]:
        """The towers as modules of their own."""
        c = self.config
        return {
            "vision": ClipVision(c.vision, parent=None),
            "text": ClipText(c.text, parent=None),
        }


ARCHITECTURES = {"viclip": Architecture(ViClipConfig, ViClip)}
