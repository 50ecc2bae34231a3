"""Clips whose frames are decoded already."""

from collections.abc import Sequence
from types import TracebackType
from typing import Self

import numpy as np

from internvideo_jax.data.video import Transform, VideoError


class DecodedClip:
    """Frames in memory, or mapped from a file, as a `data.clips.ClipReader`.

    Args:
      name: what errors call the clip.
      frames: uint8 `[T, H, W, 3]`.
      fps: mean frames per second; None where unknown.

    Raises:
      VideoError: there are no frames, or they are no pictures.
    """

    def __init__(self, name: str, frames: np.ndarray, fps: float | None = None):
        if frames.ndim != 4 or frames.shape[-1] != 3 or not frames.size:
            raise VideoError(
                name, "frames [T, H, W, 3]", f"shape {frames.shape}", "leave the clip out"
            )
        self._name = name
        self._frames = frames
        self.fps = fps

    @property
    def num_frames(self) -> int:
        """T."""
        return len(self._frames)

    def read(
        self, indices: Sequence[int] | np.ndarray, *, transform: Transform | None = None
    ) -> np.ndarray:
        """Copies chosen frames; see `data.clips.ClipReader`."""
        numbers = np.asarray(indices, np.int64)
        if not len(numbers) or numbers.min() < 0 or numbers.max() >= self.num_frames:
            raise ValueError(
                f"{self._name}: expected frame numbers from 0 to {self.num_frames - 1}, found"
                f" {numbers.tolist()}"
            )
        frames = self._frames[numbers]
        return frames if transform is None else np.stack([transform(frame) for frame in frames])

    def close(self) -> None:
        """Does nothing: the frames belong to whoever made them."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()
