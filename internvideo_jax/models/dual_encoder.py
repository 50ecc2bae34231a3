"""What all models have in common that compare clips with texts."""

import abc
from typing import Any, Literal

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from internvideo_jax.models.architecture import Tower
from internvideo_jax.nn.normalization import l2_normalize

# What texts are compared with; an image is a clip of one frame.
Medium = Literal["video", "audio", "audio_video"]


@flax.struct.dataclass
class Embedded:
    """What a tower makes of clips or of texts.

    Attributes:
      tokens: its last layer's output: `[B, N, D]` of a clip, class token first, or `[B, L, D]` of a
        text; None where nobody reads them.
      embedding: what is compared `[B, C]`, not normalised.
    """

    tokens: Any
    embedding: Any


class DualEncoder(Tower):
    """Base of the models that embed clips and texts alike, to compare them by their cosines.

    Both methods return an `Embedded`, or what has its attributes.
    """

    def __call__(
        self,
        video: jax.Array,
        ids: jax.Array,
        mask: jax.Array | None = None,
        *,
        deterministic: bool = True,
    ) -> jax.Array:
        """Cosine similarities of clips and texts.

        Args:
          video: `[B, T, H, W, 3]`, as for `encode_video`.
          ids: `[B', L]`, as for `encode_text`.
          mask: integers `[B', L]`, 0 at padding.
          deterministic: False turns drop path and dropout on (needs the `dropout` RNG).

        Returns:
          `[B, B']` float32.
        """
        clips = self.encode_video(video, deterministic=deterministic)
        texts = self.encode_text(ids, mask, deterministic=deterministic)
        return cosines(clips.embedding, texts.embedding)

    @abc.abstractmethod
    def encode_video(
        self, video: jax.Array, kept: jax.Array | None = None, *, deterministic: bool = True
    ) -> Any:
        """Encodes normalised clips `[B, T, H, W, 3]`, images being clips of one frame.

        Args:
          video: the clips.
          kept: `[B, K]` ascending indices of the tokens to keep, 0 being the class token; None
            keeps all.
          deterministic: False turns drop path on (needs the `dropout` RNG).
        """

    @abc.abstractmethod
    def encode_text(
        self, ids: jax.Array, mask: jax.Array | None = None, *, deterministic: bool = True
    ) -> Any:
        """Encodes ids `[B, L]` of the model's tokenizer; `mask` `[B, L]` is 0 at padding."""

    @abc.abstractmethod
    def bounded_temperature(self) -> jax.Array:
        """What cosines are divided by, float32 []: the parameter, kept within its bounds."""

    def cosine_scale(self) -> jax.Array:
        """What cosines are multiplied by to be logits of a softmax over texts, float32 []."""
        return 1 / self.bounded_temperature()

    def text_tower(self) -> tuple[Tower, tuple[str, ...]] | None:
        """The encoder of texts as a module of its own, and the way to it as in `video_tower`."""
        return None

    @property
    def media(self) -> tuple[Medium, ...]:
        """What its texts can be compared with; for sound it has `encode_audio` and `join`."""
        return ("video",)

    @property
    def matched_media(self) -> tuple[Medium, ...]:
        """Media that it can also read together with a text, by `fuse` and `match_logits`.

        Encoded media and texts then have `tokens`, too.
        """
        return ()

    @property
    def max_text_length(self) -> int | None:
        """Tokens of a text at most; None where there is no such limit."""
        return None

    @property
    def last_layer(self) -> int:
        found = self.video_tower()
        assert found is not None
        return found[0].last_layer

    def layer_of(self, path: str) -> int | np.ndarray:
        """Layer of a parameter: those of the video tower as there, all others the last."""
        found = self.video_tower()
        assert found is not None
        tower, names = found
        prefix = "/".join(names) + "/"
        if not path.startswith(prefix):
            return self.last_layer
        return tower.layer_of(path.removeprefix(prefix))


def cosines(clips: jax.Array, texts: jax.Array) -> jax.Array:
    """Cosines `[B, B']` float32 of embeddings `[B, C]` and `[B', C]`."""
    return jnp.einsum("bc,dc->bd", l2_normalize(clips), l2_normalize(texts), precision="highest")
