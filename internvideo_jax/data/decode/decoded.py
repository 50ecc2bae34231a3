"""Clips whose frames are decoded already."""

from collections.abc import Sequence

import numpy as np

from internvideo_jax.data.decode.video import ClipReader, Transform, VideoError, check_numbers


class DecodedClip(ClipReader):
    """Frames in memory, or mapped from a file, as a `data.decode.video.ClipReader`.

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
        self.num_frames = len(frames)

    def read(
        self, indices: Sequence[int] | np.ndarray, *, transform: Transform | None = None
    ) -> np.ndarray:
        """Copies chosen frames; see `data.decode.video.ClipReader`."""
        frames = self._frames[check_numbers(self._name, indices, self.num_frames)]
        # Transforms go by the frame's shape: what leaves the first as it is leaves all.
        first = frames[0]
        if transform is None or transform(first) is first:
            return frames
        return np.stack([transform(frame) for frame in frames])
