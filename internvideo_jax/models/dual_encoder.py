"""What all models have in common that compare clips with texts."""

import abc
from typing import Any, Literal

import jax

from internvideo_jax.models.architecture import Tower

# What texts are compared with; an image is a clip of one frame.
Medium = Literal["video", "audio", "audio_video"]


class DualEncoder(Tower):
    """Base of the models that embed clips and texts alike, to compare them by their cosines.

    Both methods return an object whose `embedding` `[B, C]` is not normalised.
    """

    @abc.abstractmethod
    def encode_video(self, video: jax.Array, *, deterministic: bool = True) -> Any:
        """Encodes normalised clips `[B, T, H, W, 3]`."""

    @abc.abstractmethod
    def encode_text(
        self, ids: jax.Array, mask: jax.Array | None = None, *, deterministic: bool = True
    ) -> Any:
        """Encodes ids `[B, L]` of the model's tokenizer; `mask` `[B, L]` is 0 at padding."""

    @abc.abstractmethod
    def cosine_scale(self) -> jax.Array:
        """What cosines are multiplied by to be logits of a softmax over texts, float32 []."""

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
