"""Whether a clip can be read, by reading some of it."""

from typing import NamedTuple

from internvideo_jax.data.annotations.records import ClipRecord
from internvideo_jax.data.decode.clips import open_clip
from internvideo_jax.data.decode.video import DEFAULT_LIMITS, Limits, VideoError


class ClipCheck(NamedTuple):
    """What was found of a clip.

    Attributes:
      num_frames: frames of the clip.
      fps: mean frames per second; None where the clip has no times.
    """

    num_frames: int
    fps: float | None


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
            # Of each frame, only a corner is kept.
            clip.read(chosen, transform=lambda frame: frame[:1, :1])
            return ClipCheck(count, clip.fps)
    except VideoError as error:
        return error
