"""Whether a clip can be read, by reading some of it."""

from typing import NamedTuple

from internvideo_jax.data.annotations.records import ClipRecord
from internvideo_jax.data.decode.audio import clip_sound
from internvideo_jax.data.decode.clips import open_clip
from internvideo_jax.data.decode.video import DEFAULT_LIMITS, Limits, VideoError

_SAMPLE_RATE = 16_000


class ClipCheck(NamedTuple):
    """What was found of a clip.

    Attributes:
      num_frames: frames of the clip; of a file of sound, its samples.
      fps: how many of them a second has, on average; None where the clip has no times.
    """

    num_frames: int
    fps: float | None


def check_clip(
    record: ClipRecord, *, every_frame: bool = False, limits: Limits = DEFAULT_LIMITS
) -> ClipCheck | VideoError:
    """Lists a clip's frames and decodes the first, the middle and the last one, or all of them.

    Of a file of sound, all is decoded.

    Returns:
      What was found, or why the clip cannot be read.
    """
    try:
        if record.media == "audio":
            return ClipCheck(len(clip_sound(record, _SAMPLE_RATE, limits=limits)), _SAMPLE_RATE)
        with open_clip(record, limits=limits) as clip:
            count = clip.num_frames
            chosen = range(count) if every_frame else sorted({0, count // 2, count - 1})
            # Of each frame, only a corner is kept.
            clip.read(chosen, transform=lambda frame: frame[:1, :1])
            return ClipCheck(count, clip.fps)
    except VideoError as error:
        return error
