"""What happens between decoded media and a model: the constants of each modality, and pixels.

Nothing here imports JAX, so that processes that only decode need not.
"""

import dataclasses
from typing import Annotated, Literal, TypeVar

import numpy as np

from internvideo_jax.config import (
    CheckedConfig,
    Factor,
    Few,
    Frames,
    PositiveFactor,
    Range,
    Side,
    Size,
)

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

# Of a clip: 400 MB as they are decoded.
_MAX_PIXELS = 2**27

# How decoded frames reach the size that a model wants.
Resize = Literal["bilinear_short_side", "bicubic_square"]
# Kinds of tokenizers, and what some models put before every text.
TokenizerKind = Literal["wordpiece", "sentencepiece", "clip_bpe", "open_clip_bpe"]
Prompt = Literal["", "summarize:"]

# A NumPy or JAX array.
Array = TypeVar("Array")


@dataclasses.dataclass(frozen=True)
class VideoPreprocessing(CheckedConfig):
    """How a model wants its clips.

    Attributes:
      mean: per-channel mean (R, G, B) of pixels scaled to [0, 1].
      std: per-channel standard deviation of the same.
      image_size: side of the square crop in pixels.
      num_frames: frames per clip.
      resize: whether the decoded frame's short side becomes `image_size`, or both of its sides.
      crop: which square of it is taken.
    """

    mean: tuple[Factor, Factor, Factor] = IMAGENET_MEAN
    std: tuple[PositiveFactor, PositiveFactor, PositiveFactor] = IMAGENET_STD
    image_size: Side = 224
    num_frames: Frames = 8
    resize: Resize = "bilinear_short_side"
    crop: Literal["center"] = "center"

    def __post_init__(self) -> None:
        super().__post_init__()
        pixels = self.num_frames * self.image_size**2
        if pixels > _MAX_PIXELS:
            raise ValueError(
                f"expected clips of at most {_MAX_PIXELS:,} pixels, found num_frames"
                f" {self.num_frames} of image_size {self.image_size}, which are {pixels:,}"
            )


@dataclasses.dataclass(frozen=True)
class AudioPreprocessing(CheckedConfig):
    """How a model wants its sound: a normalised log-mel filterbank `[num_frames, num_mels]`.

    Attributes:
      sample_rate: samples per second of the waveform.
      num_mels: mel bins.
      num_frames: frames of 25 ms, 10 ms apart; shorter sounds end in zeros (the mean level).
      mean: subtracted from the filterbank.
      scale: what it is divided by afterwards.
    """

    sample_rate: Annotated[int, Range(1000, 1_000_000)] = 16_000
    num_mels: Few = 64
    num_frames: Frames = 998
    mean: Factor = 15.41663
    scale: PositiveFactor = 2 * 6.55582


@dataclasses.dataclass(frozen=True)
class TextPreprocessing(CheckedConfig):
    """How a model wants its texts.

    Attributes:
      tokenizer: kind of the tokenizer.
      files: its files, by name, which lie beside the model.
      max_length: tokens of a text; shorter ones are padded, longer ones cut.
      prompt: what is put before every text.
    """

    tokenizer: TokenizerKind
    files: tuple[str, ...]
    max_length: Size
    prompt: Prompt = ""


@dataclasses.dataclass(frozen=True)
class Preprocessing(CheckedConfig):
    """How a model wants its inputs, by modality; None for one that it does not take."""

    video: VideoPreprocessing | None = None
    audio: AudioPreprocessing | None = None
    text: TextPreprocessing | None = None

    def require_video(self) -> VideoPreprocessing:
        """The video's part.

        Raises:
          ValueError: the model takes no videos.
        """
        if self.video is None:
            takes = [n for n in ("audio", "text") if getattr(self, n) is not None]
            raise ValueError(
                "expected a model that takes videos, found one that takes"
                f" {' and '.join(takes) or 'nothing that its description names'}; name another"
            )
        return self.video


def normalize(video: Array, preprocessing: VideoPreprocessing) -> Array:
    """Turns pixels `[..., 3]` (0..255, RGB) into the float32 that a model expects.

    Args:
      video: uint8 or float, a NumPy array on the host or a JAX array on a device; the result is
        alike.
      preprocessing: mean and deviation.
    """
    mean = np.asarray(preprocessing.mean, np.float32)
    std = np.asarray(preprocessing.std, np.float32)
    if not isinstance(video, np.ndarray):
        return (video.astype(np.float32) / 255.0 - mean) / std  # type: ignore[attr-defined]
    # Whole rows at a time: NumPy is ten times slower on inner axes of three elements.
    width, channels = video.shape[-2:]
    scale = np.tile(1 / (255 * np.asarray(preprocessing.std)), width).astype(np.float32)
    shift = np.tile(np.asarray(preprocessing.mean) / np.asarray(preprocessing.std), width)
    rows = video.reshape(-1, width * channels) * scale
    rows -= shift.astype(np.float32)
    return rows.reshape(video.shape)  # type: ignore[return-value]
