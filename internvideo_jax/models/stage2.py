"""InternVideo2 stage 2: video, audio and text towers whose last text layers read the other media.

The model encodes each medium once; the losses and a reranker fuse texts with what they need.
Source: upstream `models/internvideo2_stage2_visual.py` (the 1B layout) and
`internvideo2_stage2_audiovisual.py` (the 6B layout) of `InternVideo2/multi_modality`.
"""

import dataclasses
import functools

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from internvideo_jax.config import CheckedConfig, PositiveFactor, Width
from internvideo_jax.models.architecture import Architecture, Tower
from internvideo_jax.models.beats import Beats, BeatsConfig, beats_iter3_plus
from internvideo_jax.models.bert import Bert, BertConfig, bert_large_fusion
from internvideo_jax.models.dual_encoder import DualEncoder, Medium, cosines
from internvideo_jax.models.stage1 import DistillStudent, DistillStudentConfig, aligned_layers
from internvideo_jax.models.video_vit import (
    ImagePositions,
    VideoViTConfig,
    inside,
    internvideo2_1b,
    internvideo2_6b,
)
from internvideo_jax.nn.clipping import clip_passing_gradient
from internvideo_jax.nn.linear import Dense, dense, torch_uniform
from internvideo_jax.nn.normalization import layer_norm
from internvideo_jax.nn.partitioning import with_axes

# Upstream keeps the temperature within these before every forward pass.
TEMPERATURES = (0.001, 0.5)


@dataclasses.dataclass(frozen=True)
class Stage2Config(CheckedConfig):
    """Towers and what joins them; `internvideo2_stage2_1b()` and its sibling are the released ones.

    Attributes:
      vision: the video tower, with the decoders that follow a teacher where one is used.
      text: the text tower, whose `cross_width` is that of the media's tokens.
      audio: the audio tower; None leaves out all that has to do with sound.
      embed_dim: C, the size of the embeddings that are compared.
      media_width: width that the towers' tokens are projected to before texts attend to them; None
        leaves the video tower's as they are, which audio does not allow.
      match_heads: media for which there is a head that tells whether a text belongs to them.
      initial_temperature: what similarities are divided by at the start of training.
    """

    vision: DistillStudentConfig
    text: BertConfig
    audio: BeatsConfig | None = None
    embed_dim: Width = 512
    media_width: Width | None = None
    match_heads: tuple[Medium, ...] = ("video",)
    initial_temperature: PositiveFactor = 0.07

    def __post_init__(self) -> None:
        super().__post_init__()
        expected = self.media_width or self.vision.encoder.width
        problems = []
        if self.text.cross_width != expected:
            problems.append(
                f"a text tower that attends to states of width {expected}, found cross_width"
                f" {self.text.cross_width}"
            )
        if self.audio is not None and self.media_width is None:
            problems.append("media_width with an audio tower, found None")
        if self.audio is None and set(self.match_heads) != {"video"} & set(self.match_heads):
            problems.append(
                f"match_heads of 'video' alone without an audio tower, found {self.match_heads}"
            )
        if problems:
            raise ValueError(f"expected {'; '.join(problems)}")


def _vision(encoder: VideoViTConfig, image_positions: ImagePositions) -> DistillStudentConfig:
    encoder = dataclasses.replace(encoder, num_frames=4, image_positions=image_positions)
    layers = aligned_layers(encoder.depth, 6)
    return DistillStudentConfig(encoder, layers, clip_target_dim=3200, decoder="linear")


def internvideo2_stage2_1b() -> Stage2Config:
    """InternVideo2-Stage2 1B: video and text; texts attend to the video tower's own tokens."""
    encoder = dataclasses.replace(internvideo2_1b(), drop_path_rate=0.25)
    return Stage2Config(_vision(encoder, "own"), bert_large_fusion())


def internvideo2_stage2_6b(*, audio: bool = True) -> Stage2Config:
    """InternVideo2-Stage2 6B: video, audio and text.

    Args:
      audio: whether with the audio tower and what belongs to it.
    """
    encoder = dataclasses.replace(internvideo2_6b(), drop_path_rate=0.3)
    return Stage2Config(
        _vision(encoder, "mean"),
        dataclasses.replace(bert_large_fusion(), cross_width=768),
        beats_iter3_plus() if audio else None,
        embed_dim=768,
        media_width=768,
        match_heads=("video", "audio_video") if audio else ("video",),
    )


@flax.struct.dataclass
class MediaOutput:
    """What texts are compared and fused with.

    Attributes:
      tokens: what the fusion layers attend to `[B, M, E]`.
      embedding: projected pooled feature `[B, C]`, not normalised.
    """

    tokens: jax.Array
    embedding: jax.Array


@flax.struct.dataclass
class VisionOutput(MediaOutput):
    """A clip's `MediaOutput`, and what follows a teacher.

    Attributes:
      clip_middle: decoded tokens of the aligned blocks `[K, B, N, E]`, class token first.
      clip_final: decoded pooled feature `[B, P]`.
    """

    clip_middle: jax.Array
    clip_final: jax.Array


@flax.struct.dataclass
class TextOutput:
    """A text's encoding, before it is fused with anything.

    Attributes:
      tokens: the text layers' output `[B, L, D]`.
      mask: integers `[B, L]`, 0 at padding.
      embedding: projection of the first token `[B, C]`, not normalised.
    """

    tokens: jax.Array
    mask: jax.Array
    embedding: jax.Array


class MediaTokens(nn.Module):
    """A tower's tokens `[B, M, D]` as texts attend to them: a linear map and a LayerNorm."""

    width: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, tokens: jax.Array) -> jax.Array:
        projected = _joining(self.width, "proj", self.dtype, tokens.shape[-1])(tokens)
        return jnp.asarray(layer_norm(1e-5, self.dtype, "norm")(projected))


def _joining(features: int, name: str | None, dtype: jnp.dtype, inputs: int) -> Dense:
    """A linear map between towers, whose kernel starts as torch's do."""
    return dense(features, ("embed", "pooled"), dtype, name, kernel_init=torch_uniform(inputs))


class Stage2(DualEncoder):
    """The towers, their projections, and the heads; each method below is one step of its use.

    `module.apply(variables, clips, method="encode_video")` and so on. Decoders and heads whose
    results nobody reads cost nothing under `jax.jit`.
    """

    config: Stage2Config

    def setup(self) -> None:
        c = self.config
        dtype = jnp.dtype(c.text.dtype)
        self.vision = DistillStudent(c.vision)
        self.text = Bert(c.text)
        join = functools.partial(_joining, dtype=dtype)
        self.vision_proj = join(c.embed_dim, None, inputs=c.vision.encoder.pooled_dim)
        self.text_proj = join(c.embed_dim, None, inputs=c.text.width)
        if c.media_width:
            self.vision_tokens = MediaTokens(c.media_width, dtype)
        if c.audio and c.media_width:
            self.audio = Beats(c.audio)
            self.audio_proj = join(c.embed_dim, None, inputs=c.audio.width)
            self.audio_tokens = MediaTokens(c.media_width, dtype)
            self.audio_video_proj = join(c.embed_dim, None, inputs=2 * c.embed_dim)
        self.heads = {
            medium: _joining(2, f"{medium}_match_head", jnp.dtype("float32"), c.text.width)
            for medium in c.match_heads
        }
        start = with_axes(nn.initializers.constant(c.initial_temperature), ())
        self.temperature = self.param("temperature", start, (), jnp.float32)

    def __call__(
        self,
        video: jax.Array,
        ids: jax.Array,
        mask: jax.Array | None = None,
        filterbank: jax.Array | None = None,
        *,
        deterministic: bool = True,
    ) -> jax.Array:
        """Cosine similarities of clips, with their sound if it is given, and texts.

        Args:
          video: `[B, T, H, W, 3]`, as for `encode_video`.
          ids: `[B', L]`, as for `encode_text`.
          mask: integers `[B', L]`, 0 at padding.
          filterbank: `[B, T', M]`, as for `encode_audio`.
          deterministic: False turns dropout and drop path on (needs the `dropout` RNG).

        Returns:
          `[B, B']` float32.
        """
        media: MediaOutput = self.encode_video(video, deterministic=deterministic)
        text = self.encode_text(ids, mask, deterministic=deterministic)
        if filterbank is not None:
            media = self.join(media, self.encode_audio(filterbank, deterministic=deterministic))
        if self.is_initializing():
            fused = self.fuse(text.tokens, text.mask, media.tokens)
            for medium in self.config.match_heads:
                self.match_logits(fused, medium)
            if self.config.text.mlm_head:
                self.mlm_logits(fused)
        return cosines(media.embedding, text.embedding)

    def encode_video(
        self, video: jax.Array, kept: jax.Array | None = None, *, deterministic: bool = True
    ) -> VisionOutput:
        """Encodes normalised clips `[B, T, H, W, 3]`, images being clips of one frame.

        Args:
          video: the clips.
          kept: `[B, K]` ascending indices of the tokens to keep, 0 being the class token; None
            keeps all.
          deterministic: False turns drop path on (needs the `dropout` RNG).
        """
        encoded = self.vision(video, kept, deterministic=deterministic)
        tokens = self.vision_tokens(encoded.tokens) if self.config.media_width else encoded.tokens
        embedding = self.vision_proj(encoded.pooled)
        return VisionOutput(tokens, embedding, encoded.clip_middle, encoded.clip_final)

    def encode_audio(self, filterbank: jax.Array, *, deterministic: bool = True) -> MediaOutput:
        """Encodes normalised log-mel filterbanks `[B, T, M]`.

        Raises:
          ValueError: the model has no audio tower.
        """
        self._expect_audio()
        encoded = self.audio(filterbank, deterministic=deterministic)
        return MediaOutput(self.audio_tokens(encoded.tokens), self.audio_proj(encoded.pooled))

    def join(self, video: MediaOutput, audio: MediaOutput) -> MediaOutput:
        """Clips and their sound as one medium: its tokens are the sound's, then the clip's.

        Raises:
          ValueError: the model has no audio tower.
        """
        self._expect_audio()
        embedding = jnp.concatenate([audio.embedding, video.embedding], axis=-1)
        tokens = jnp.concatenate([audio.tokens, video.tokens], axis=1)
        return MediaOutput(tokens, self.audio_video_proj(embedding))

    def encode_text(
        self, ids: jax.Array, mask: jax.Array | None = None, *, deterministic: bool = True
    ) -> TextOutput:
        """Encodes ids `[B, L]` of texts by the text layers; `mask` is 0 at padding."""
        mask = jnp.ones_like(ids) if mask is None else mask
        tokens = self.text(ids, mask, mode="text", deterministic=deterministic).tokens
        return TextOutput(tokens, mask, self.text_proj(tokens[:, 0]))

    def fuse(
        self, text: jax.Array, mask: jax.Array, media: jax.Array, *, deterministic: bool = True
    ) -> jax.Array:
        """Tokens `[B, L, D]` of the fusion layers, each text attending to the medium of its row.

        Args:
          text: tokens `[B, L, D]` of a `TextOutput`.
          mask: its mask `[B, L]`.
          media: tokens `[B, M, E]` of a `MediaOutput`.
          deterministic: False turns dropout on (needs the `dropout` RNG).
        """
        fused = self.text(text, mask, media, mode="fusion", deterministic=deterministic)
        return fused.tokens

    def match_logits(self, fused: jax.Array, medium: Medium = "video") -> jax.Array:
        """Logits `[B, 2]` float32, of fused tokens, of a mismatch and of a match.

        Raises:
          ValueError: the model has no such head.
        """
        if medium not in self.heads:
            raise ValueError(
                f"expected a medium that the model has a matching head for"
                f" ({', '.join(self.heads) or 'none'}), found {medium!r}"
            )
        return self.heads[medium](fused[:, 0].astype(jnp.float32))

    def mlm_logits(self, fused: jax.Array) -> jax.Array:
        """Logits `[B, L, V]` float32 of the words that stand at fused tokens."""
        return self.text.mlm_logits(fused)

    def bounded_temperature(self) -> jax.Array:
        """What cosines are divided by, float32 []: the parameter, kept within [0.001, 0.5].

        The gradient passes as if it were within, so that it comes back.
        """
        return clip_passing_gradient(self.temperature, *TEMPERATURES)

    @property
    def media(self) -> tuple[Medium, ...]:
        return ("video",) if self.config.audio is None else ("video", "audio", "audio_video")

    @property
    def matched_media(self) -> tuple[Medium, ...]:
        return self.config.match_heads

    @property
    def max_text_length(self) -> int:
        return self.config.text.max_length

    def _expect_audio(self) -> None:
        if self.config.audio is None:
            raise ValueError("expected a model with an audio tower, found none in its config")

    def video_tower(self) -> tuple[Tower, tuple[str, ...]] | None:
        return inside("vision", DistillStudent(self.config.vision, parent=None))

    def text_tower(self) -> tuple[Tower, tuple[str, ...]]:
        return Bert(self.config.text, parent=None), ("text",)

    def example_inputs(self, batch_size: int = 1) -> tuple[jax.ShapeDtypeStruct, ...]:
        """Shapes of clips, ids, masks and, with an audio tower, filterbanks."""
        c = self.config
        (video, *_) = DistillStudent(c.vision, parent=None).example_inputs(batch_size)
        ids, mask, *_ = Bert(c.text, parent=None).example_inputs(batch_size)
        if c.audio is None:
            return video, ids, mask
        return video, ids, mask, *Beats(c.audio, parent=None).example_inputs(batch_size)

    def is_decayed(self, path: str) -> bool:
        """Whether weight decay applies: as in the towers; not to the temperature."""
        part, _, rest = path.partition("/")
        if part == "audio" and self.config.audio is not None:
            return Beats(self.config.audio, parent=None).is_decayed(rest)
        return path != "temperature" and super().is_decayed(path)


ARCHITECTURES = {"stage2": Architecture(Stage2Config, Stage2)}
