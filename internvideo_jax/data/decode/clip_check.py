"""Whether a clip can be read, by reading some of it."""

from typing import NamedTuple

import numpy as np

from internvideo_jax.data.annotations.records import ClipRecord
from internvideo_jax.data.decode.clips import open_clip
from internvideo_jax.data.decode.video import DEFAULT_LIMITS, Limits, VideoError


class ClipCheck(NamedTuple):
    """What was found of a clip.

    Attributes:
      num_frames: frames of the clip.
      fps: mean frames per second; None where the clip has no times.
      width: of its upright frames, in pixels.
      height: of its upright frames, in pixels.
    """

    num_frames: int
    fps: float | None
    width: int
    height: int


def check_clip(
    record: ClipRecord, *, every_frame: bool = False, limits: Limits = DEFAULT_LIMITS
) -> ClipCheck | VideoError:
    """Lists a clip's frames and decodes the first, the middle and the last one, or all of them.

    Returns:
      What was found, or why the clip cannot be read.
    """
    try:
        with open_clip(record, limits=limits) as clip:
            count = clip.num_frames
            chosen = range(count) if every_frame else sorted({0, count // 2, count - 1})
            shapes = clip.read(chosen, transform=_shape)
            height, width = shapes[0].tolist()
            return ClipCheck(count, clip.fps, width, height)
    except VideoError as error:
        return error


def _shape(frame: np.ndarray) -> np.ndarray:
    return np.array(frame.shape[:2])
