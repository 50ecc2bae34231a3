"""What a source of clips is, and what it gives."""

from typing import NamedTuple, Protocol

import numpy as np

from internvideo_jax.data.annotations.records import ClipRecord
from internvideo_jax.data.decode.audio import clip_sound
from internvideo_jax.data.decode.clips import open_clip
from internvideo_jax.data.decode.decoded import DecodedClip
from internvideo_jax.data.decode.video import ClipReader, VideoError


class SourceClip(NamedTuple):
    """One clip with what its source holds of it.

    Attributes:
      record: what is known of it.
      data: its encoded file, or the encoded images of its folder; None if they are on disk.
      frames: uint8 `[T, H, W, 3]` where the source holds decoded frames.
      sound: float32 `[S]` where it holds its decoded sound, or why there is none.
    """

    record: ClipRecord
    data: bytes | tuple[bytes, ...] | None = None
    frames: np.ndarray | None = None
    sound: np.ndarray | VideoError | None = None

    def open(self) -> ClipReader:
        """Opens the clip.

        Raises:
          VideoError: it cannot be read.
        """
        if self.frames is not None:
            return DecodedClip(self.record.path, self.frames)
        return open_clip(self.record, data=self.data)

    def waveform(self, sample_rate: int) -> np.ndarray:
        """Its sound, float32 `[S]` in [-1, 1].

        Args:
          sample_rate: samples per second; those of a sound that the source holds.

        Raises:
          SoundError: it has none.
          VideoError: it cannot be read.
        """
        if isinstance(self.sound, VideoError):
            raise self.sound
        if self.sound is not None:
            return self.sound
        return clip_sound(self.record, sample_rate, data=self.data)


def reason(error: Exception) -> str:
    """What is wrong with a clip, without its path."""
    if isinstance(error, VideoError):
        return error.reason
    return error.strerror if isinstance(error, OSError) and error.strerror else str(error)


class ClipSource(Protocol):
    """A list of clips; any thread or process may ask for any of them."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> SourceClip: ...

    def digest(self) -> str:
        """Changes with the clips, their order, and the files that hold them."""
        ...

    def fingerprint(self) -> str:
        """Changes with the clips and their order, but not with where they lie."""
        ...
